"""pet-split: the delta and the rest, bit for bit, and adapters that are extracted from what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from chains.adapters import FOUND, LINEAR, names_for, pair_items
from chains.choosing import glob_of, split_some
from chains.files import read_folder
from chains.forms import (
    FORMS,
    adapter_place,
    fits,
    nested,
    new_family,
    new_spelling,
    renamed_pair,
    renamed_weight,
)
from chains.networks import HUGGING_FACE
from chains.oracle import Model, Tensor, WrongTensorError, cast, same, unit
from chains.running import MISFIT
from chains.state import Chain, choose_dtype, write
from chains.storing import FILE, FOLDER, SUFFIXES, Stored


def split(chain: Chain) -> bool:
    """The adapter is cut out of the checkpoint, and waits beside the base."""
    if chain.adapter is None or not chain.is_combined:
        return False
    if chain.chance(0.4):
        split_some(chain, chain.adapter)
    adapter, before = chain.adapter, chain.stored
    form = chain.rng.choice(FORMS)
    renamed = {weight: renamed_pair(chain, weight, pair, form) for weight, pair in adapter.pairs.items()}
    dtype = choose_dtype(chain)
    expected = {name: cast(one, dtype) for pair in renamed.values() for name, one in pair_items(pair)}
    place = adapter_place(chain, form, before.suffix)
    rest = chain.stem("rest") + chain.rng.choice(["", *SUFFIXES])
    line = [before.path, *before.options(), "--alpha", repr(adapter.alpha), "--format", form]
    line += ["--dtype", dtype] if dtype else []
    write(chain, "pet-split", [*line, "--remainder", rest], place, rest)
    place = nested(place, form)
    model = chain.check(place, expected)
    remainder = Stored(rest, FILE if Path(rest).suffix else FOLDER, Path(rest).suffix)
    weights = chain.check(remainder, {name: same(tensor) for name, tensor in chain.weights.items()})
    family, spelled = new_family(form, adapter.family), new_spelling(chain, form, adapter.spelled)
    found = replace(adapter, pairs=renamed, form=FOUND, family=family, spelled=spelled)
    chain.model, chain.stored, chain.is_moved = weights, remainder, False
    chain.adapter = found.with_tensors(model, stored=place)
    return True


def convert(chain: Chain) -> bool:
    """The adapter that waits gets the form that another library reads; its configuration is found beside it."""
    if chain.adapter is None or chain.adapter.stored is None or chain.adapter.kinds != {LINEAR}:
        return False
    adapter, before = chain.adapter, chain.adapter.stored
    options = []
    if len(adapter.pairs) > 1 and chain.chance(0.25):
        left_out = chain.rng.choice(sorted(adapter.pairs))
        options = ["--exclude", glob_of(adapter.pairs[left_out])]
        adapter = replace(adapter, pairs={weight: one for weight, one in adapter.pairs.items() if weight != left_out})
    form = chain.rng.choice(FORMS)
    renamed = {weight: renamed_pair(chain, weight, pair, form) for weight, pair in adapter.pairs.items()}
    dtype = choose_dtype(chain)
    expected = {name: cast(one, dtype) for pair in renamed.values() for name, one in pair_items(pair)}
    place = adapter_place(chain, form, before.suffix)
    saved = {
        weight: (renamed_weight(chain, weight, name, form, adapter.family), tensor)
        for weight, (name, tensor) in adapter.saved.items()
    }
    expected |= {name: cast(tensor, dtype) for name, tensor in saved.values()}
    line = [before.path, "--format", form, *options, *(["--dtype", dtype] if dtype else [])]
    if not fits(adapter, form):
        chain.shell.run("pet-split", *line, "-o", place.path, code=MISFIT)
        return True
    write(chain, "pet-split", line, place)
    place = nested(place, form)
    model = chain.check(place, expected)
    family, spelled = new_family(form, adapter.family), new_spelling(chain, form, adapter.spelled)
    converted = replace(adapter, pairs=renamed, saved=saved, family=family, spelled=spelled)
    chain.adapter = converted.with_tensors(model, stored=place)
    return True


def extract(chain: Chain, before: Model, base: Stored) -> None:
    """The nearest adapter of a rank is cut out of what a step changed: as near as the singular values allow."""
    floats = {name: tensor for name, tensor in chain.model.items() if tensor.dtype is not None}
    matrices = [name for name, tensor in floats.items() if _is_layer(name) and tensor.bits.ndim == 2]
    # By value: adding nothing makes 0.0 of -0.0, which is no change.
    changed = [name for name in matrices if (chain.model[name].bits != before[name].bits).any()]
    if not changed:
        return
    rank = chain.rng.choice([1, 2, 4])
    place = Stored(chain.stem("extracted"), FOLDER, ".safetensors")
    line = [chain.stored.path, "--base", base.path, "--rank", str(rank), "--format", "safetensors"]
    line += [*chain.stored.options(), *base.options("--base-strategy"), "--embeddings", "skip"]
    left_out = chain.rng.choice(changed) if len(changed) > 1 and chain.chance(0.4) else ""
    line += ["--exclude", left_out] if left_out else []
    write(chain, "pet-split", line, place)
    found = read_folder(chain.folder / place.path)
    if left_out and set(names_for(left_out, "mindpet") + names_for(left_out, "peft")) & found.keys():
        raise WrongTensorError(f"{left_out} was extracted, and was to be left out")
    for name in matrices:
        if name == left_out:
            continue
        delta = chain.model[name].bits.astype(np.float64) - before[name].bits.astype(np.float64)
        a_name, b_name = names_for(name, "peft" if chain.style == HUGGING_FACE else "mindpet")
        noise = _rounding_noise(chain.model[name])
        if a_name not in found:
            if np.linalg.norm(delta) > noise:
                raise WrongTensorError(f"{name} changed, and no adapter of it was extracted")
            continue
        a, b = found[a_name].astype(np.float64), found[b_name].astype(np.float64)
        values = np.linalg.svd(delta, compute_uv=False)
        best = np.sqrt(np.sum(values[len(a) :] ** 2))
        error = np.linalg.norm(delta - b @ a)
        nearest = np.sqrt(np.sum(values[rank:] ** 2))
        if len(a) > rank or error > best + 1e-3 * values[0] or error > nearest + 1e-3 * values[0] + noise:
            raise WrongTensorError(f"{name}: rank {len(a)} of {rank} is off by {error}, the nearest one by {nearest}")
        chain.figures.tensors += 2
        chain.figures.elements += a.size + b.size


def _is_layer(name: str) -> bool:
    return name.endswith(".weight") and not any(part in name for part in ("embed", "lm_head"))


def _rounding_noise(tensor: Tensor) -> float:
    """What the rounding of a matrix may look like, which is not extracted: the norm of noise of a ULP an element.

    The largest singular value of such noise is about its root mean square times sqrt(rows) + sqrt(columns).
    """
    rows, columns = tensor.bits.shape
    size = np.sqrt(np.mean(unit(tensor.bits.astype(np.float64), str(tensor.dtype)) ** 2))
    return float(size * (np.sqrt(rows) + np.sqrt(columns)) * np.sqrt(min(rows, columns)))
