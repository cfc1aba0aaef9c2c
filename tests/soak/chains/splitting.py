"""pet-split: the delta and the rest, bit for bit, and adapters that are extracted from what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from chains.adapters import FOUND, Pair, names_for, pair_items
from chains.files import read_folder
from chains.networks import HUGGING_FACE, MINDFORMERS, PLAIN, translated
from chains.oracle import Model, Tensor, WrongTensorError, cast, same, unit
from chains.state import Chain, choose_dtype, write
from chains.storing import FILE, FOLDER, SUFFIXES, Stored

FORMS = ("keep", "ckpt", "safetensors", "peft", "mindformers", "slora")


def split(chain: Chain) -> bool:
    """The adapter is cut out of the checkpoint, and waits beside the base."""
    if chain.adapter is None or not chain.is_combined:
        return False
    adapter, before = chain.adapter, chain.stored
    form = chain.rng.choice(FORMS)
    renamed = {weight: _renamed(chain, weight, pair, form) for weight, pair in adapter.pairs.items()}
    dtype = choose_dtype(chain)
    expected = {name: cast(one, dtype) for pair in renamed.values() for name, one in pair_items(pair)}
    place = _adapter_place(chain, form, before.suffix)
    rest = chain.stem("rest") + chain.rng.choice(["", *SUFFIXES])
    line = [before.path, *before.options(), "--alpha", repr(adapter.alpha), "--format", form]
    line += ["--dtype", dtype] if dtype else []
    write(chain, "pet-split", [*line, "--remainder", rest], place, rest)
    place = _nested(place, form)
    model = chain.check(place, expected)
    remainder = Stored(rest, FILE if Path(rest).suffix else FOLDER, Path(rest).suffix)
    weights = chain.check(remainder, {name: same(tensor) for name, tensor in chain.weights.items()})
    found = replace(adapter, pairs=renamed, form=FOUND, family=_family(form, adapter.family))
    chain.model, chain.stored, chain.is_moved = weights, remainder, False
    chain.adapter = found.with_tensors(model, stored=place)
    return True


def convert(chain: Chain) -> bool:
    """The adapter that waits gets the form that another library reads; its configuration is found beside it."""
    if chain.adapter is None or chain.adapter.stored is None:
        return False
    adapter, before = chain.adapter, chain.adapter.stored
    form = chain.rng.choice(FORMS)
    renamed = {weight: _renamed(chain, weight, pair, form) for weight, pair in adapter.pairs.items()}
    dtype = choose_dtype(chain)
    expected = {name: cast(one, dtype) for pair in renamed.values() for name, one in pair_items(pair)}
    place = _adapter_place(chain, form, before.suffix)
    write(chain, "pet-split", [before.path, "--format", form, *(["--dtype", dtype] if dtype else [])], place)
    place = _nested(place, form)
    model = chain.check(place, expected)
    converted = replace(adapter, pairs=renamed, family=_family(form, adapter.family))
    chain.adapter = converted.with_tensors(model, stored=place)
    return True


def extract(chain: Chain, before: Model, base: Stored) -> None:
    """The nearest adapter of a rank is cut out of what a step changed: as near as the singular values allow."""
    matrices = [name for name, tensor in chain.model.items() if _is_layer(name) and tensor.bits.ndim == 2]
    # By value: adding nothing makes 0.0 of -0.0, which is no change.
    if not any((chain.model[name].bits != before[name].bits).any() for name in matrices):
        return
    rank = chain.rng.choice([1, 2, 4])
    place = Stored(chain.stem("extracted"), FOLDER, ".safetensors")
    line = [chain.stored.path, "--base", base.path, "--rank", str(rank), "--format", "safetensors"]
    line += [*chain.stored.options(), *base.options("--base-strategy"), "--embeddings", "skip"]
    write(chain, "pet-split", line, place)
    found = read_folder(chain.folder / place.path)
    for name in matrices:
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


def _nested(place: Stored, form: str) -> Stored:
    """Where the adapter itself lies: SLoRA has a folder of adapters."""
    return replace(place, path=f"{place.path}/{place.path}") if form == "slora" else place


def _family(form: str, own: str) -> str:
    return {"peft": "peft", "mindformers": "mindpet", "slora": "pynative"}.get(form, own)


def _renamed(chain: Chain, weight: str, pair: Pair, form: str) -> Pair:
    """A and B under the names that a library has for them."""
    if form not in ("peft", "mindformers", "slora"):
        return pair
    style = HUGGING_FACE if form == "peft" else MINDFORMERS
    name = weight if chain.style == PLAIN else translated(weight, style)
    a_name, b_name = names_for(name, _family(form, ""))
    return replace(pair, a_name=a_name, b_name=b_name)


def _adapter_place(chain: Chain, form: str, own_suffix: str) -> Stored:
    stem = chain.stem("adapter")
    suffix = {"ckpt": ".ckpt", "slora": ".ckpt"}.get(form, ".safetensors")
    if form == "keep":
        suffix = own_suffix
    if form in ("keep", "ckpt", "safetensors") and chain.chance(0.4):
        return Stored(f"{stem}{suffix}", FILE, suffix)
    return Stored(stem, FOLDER, suffix)
