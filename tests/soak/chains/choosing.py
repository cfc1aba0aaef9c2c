"""What `--include`, `--exclude` and `--names` of pet-split choose."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from chains.adapters import Adapter, Pair, names_for, pair_items
from chains.forms import FORMS, PLAIN_FORMS, adapter_place, renamed_pair, renamed_weight
from chains.networks import HUGGING_FACE, MINDFORMERS, PLAIN, translated
from chains.oracle import Expected, same
from chains.state import Chain, write
from chains.storing import FILE, FOLDER, SUFFIXES, Stored


def split_some(chain: Chain, adapter: Adapter) -> None:
    """With what globs add, without what they leave out, under other names; the chain goes on without the result."""
    pairs, weights = dict(adapter.pairs), chain.weights
    left_out = chain.rng.choice(sorted(pairs)) if len(pairs) > 1 and chain.chance(0.7) else ""
    options = ["--exclude", glob_of(pairs.pop(left_out))] if left_out else []
    plain = sorted(name for name, one in weights.items() if one.bits.ndim == 1 and one.dtype and "." in name)
    globs = [plain[0], f"*.{plain[-1].rpartition('.')[0].rpartition('.')[2]}.*"]
    glob = chain.rng.choice([one for one in globs if not any(fnmatchcase(weight, one) for weight in adapter.pairs)])
    added = [name for name in weights if fnmatchcase(name, glob)] if chain.chance(0.8) else []
    options += ["--include", glob] if added else []
    form = chain.rng.choice([one for one in FORMS if one != "slora"])
    names, renamed = _choose_layer_names(chain, [*pairs, *added]) if form in PLAIN_FORMS else (None, {})
    options += ["--names", names] if names else []
    expected: dict[str, Expected] = {}
    for weight, pair in pairs.items():
        new = replace(pair, a_name=renamed[weight][0], b_name=renamed[weight][1]) if weight in renamed else pair
        expected |= {name: same(one) for name, one in pair_items(renamed_pair(chain, weight, new, form))}
    for weight in added:
        own = renamed[weight][0] if weight in renamed else weight
        expected[renamed_weight(chain, weight, own, form, adapter.family)] = same(weights[weight])
    place = adapter_place(chain, form, chain.stored.suffix)
    rest = chain.stem("rest") + chain.rng.choice(["", *SUFFIXES])
    line = [chain.stored.path, *chain.stored.options(), "--alpha", repr(adapter.alpha), "--format", form]
    write(chain, "pet-split", [*line, *options, "--remainder", rest], place, rest)
    chain.check(place, expected)
    kept = {name: same(one) for name, one in weights.items() if name not in added}
    kept |= {name: same(one) for name, one in pair_items(adapter.pairs[left_out])} if left_out else {}
    chain.check(Stored(rest, FILE if Path(rest).suffix else FOLDER, Path(rest).suffix), kept)


def glob_of(pair: Pair) -> str:
    """What matches all of a layer's tensors."""
    return f"{pair.a_name.rpartition('lora_')[0]}lora_*"


def _choose_layer_names(chain: Chain, weights: list[str]) -> tuple[str | None, dict[str, tuple[str, ...]]]:
    """What `--names` is given, or None, and the new names of what belongs to each weight."""
    if chain.adapter is None or chain.chance(0.5):
        return None, {}
    style = chain.rng.choice([MINDFORMERS, HUGGING_FACE, "file"])
    if chain.style == PLAIN or style == "file":
        # Of layers the name of the weight is looked up.
        table = {weight: f"other.{weight}" for weight in weights if chain.chance(0.5)}
        path = f"{chain.stem('names')}.json"
        (chain.folder / path).write_text(json.dumps(table))
    else:
        path, table = style, {weight: translated(weight, style) for weight in weights}
    new = {}
    for weight, name in table.items():
        is_layer = weight in chain.adapter.pairs
        new[weight] = names_for(name, chain.adapter.family) if is_layer else (name,)
    return path, new
