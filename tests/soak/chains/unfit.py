"""Adapters that have to be refused, as they fit no base, each other, or what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chains.adapters import ALPHA, Adapter, random_adapter, saved_name, spelled_as, store_adapter, with_saved
from chains.files import read_file
from chains.networks import FP8, random_values
from chains.running import MISFIT
from chains.state import Chain
from chains.storing import FILE, store


def _unknown_alpha(chain: Chain) -> bool:
    adapter = _drawn(chain)
    if adapter is None or adapter.stored is None:
        return False
    line = [chain.stored.path, adapter.stored.path, *chain.stored.options()]
    chain.shell.run("pet-merge", *line, "-o", "out.ckpt", code=MISFIT)
    return True


def _misfit(chain: Chain) -> bool:
    """An adapter for a wider network, or with a value that is not finite, or without one of its matrices."""
    adapter = _drawn(chain)
    if adapter is None or adapter.stored is None or adapter.stored.kind != FILE:
        return False
    arrays = dict(read_file(chain.folder / adapter.stored.path))
    name = chain.rng.choice([pair.a_name for pair in adapter.pairs.values()])
    kind = chain.rng.choice(["wide", "nan", "inf", "alone"])
    if kind == "alone":
        del arrays[name]
    elif kind == "wide":
        arrays[name] = np.concatenate([arrays[name], arrays[name]], -1)
    else:
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[chain.rng.randrange(arrays[name].size)] = float(kind)
    stored = store(chain.rng, chain.folder, chain.stem(f"adapter-{kind}"), arrays, FILE)
    line = [chain.stored.path, stored.path, *chain.stored.options(), *adapter.options()]
    chain.shell.run("pet-merge", *line, "-o", "out.ckpt", code=MISFIT)
    return True


def _codes(chain: Chain) -> bool:
    """FP8 where values are wanted: in A or B, in the weight that they change, or in one that was trained whole."""
    adapter = _drawn(chain)
    if adapter is None or adapter.stored is None or adapter.stored.kind != FILE:
        return False
    dtype, kind = chain.rng.choice(FP8), chain.rng.choice(["matrix", "weight", "whole"])
    path, arrays = adapter.stored.path, dict(read_file(chain.folder / adapter.stored.path))
    base, options = chain.stored, chain.stored.options()
    weight = chain.rng.choice(sorted(set(adapter.pairs) & chain.weights.keys()) or [""])
    if not weight:
        return False
    pair = adapter.pairs[weight]
    if kind == "weight":
        weights = {name: tensor.bits for name, tensor in chain.weights.items()}
        weights[weight] = random_values(chain.rng, weights[weight].shape, "fp32").astype(dtype)
        base = store(chain.rng, chain.folder, chain.stem("codes"), weights, FILE)
        options = []
    elif kind == "matrix":
        name = chain.rng.choice([pair.a_name, pair.b_name])
        path = _stored(chain, {**arrays, name: random_values(chain.rng, arrays[name].shape, "fp32").astype(dtype)})
    else:
        plain = next(name for name, one in chain.weights.items() if one.bits.ndim == 1 and one.dtype and "." in name)
        own = saved_name(spelled_as(plain, adapter.spelled), adapter.family)
        path = _stored(
            chain, {**arrays, own: random_values(chain.rng, chain.weights[plain].bits.shape, "fp32").astype(dtype)}
        )
    line = [base.path, path, *options, *adapter.options()]
    chain.shell.run("pet-merge", *line, "-o", "out.ckpt", code=MISFIT)
    if kind == "matrix":
        chain.shell.run("pet-merge", "--adapters-only", *line[1:2], *adapter.options(), "-o", "out.ckpt", code=MISFIT)
    return True


def _stored(chain: Chain, arrays: Mapping[str, np.ndarray]) -> str:
    return store(chain.rng, chain.folder, chain.stem("adapter-codes"), arrays, FILE).path


def _not_combined(chain: Chain) -> bool:
    """Several adapters that have no combination: DoRA and others, one tensor trained whole twice, or weighed."""
    if chain.adapter is not None:
        return False
    shapes = {name: tensor.bits.shape for name, tensor in chain.weights.items()}
    whole = chain.rng.choice([[True, True], [True, False]])
    drawn = [
        random_adapter(chain.rng, chain.network, shapes, chain.style, form=ALPHA, has_special=False) for _ in whole
    ]
    free = {name: shape for name, shape in shapes.items() if len(shape) == 1 and name.endswith("norm.weight")}
    if not free:
        return False
    name = chain.rng.choice(sorted(free))
    drawn = [
        with_saved(chain.rng, one, chain.style, {name: free[name]}) if is_saved else one
        for one, is_saved in zip(drawn, whole, strict=True)
    ]
    stored = [store_adapter(chain.rng, chain.folder, chain.stem("adapter"), one, in_ranks=False) for one in drawn]
    line = [one.stored.path for one in stored if one.stored is not None]
    line += [word for one in stored for word in one.options()]
    line += [] if all(whole) else ["--weight", "0.5", "--weight", "1"]
    inputs = [chain.stored.path, *chain.stored.options()] if chain.chance(0.5) else ["--adapters-only"]
    chain.shell.run("pet-merge", *inputs[:1], *line, *inputs[1:], "-o", "out.ckpt", code=MISFIT)
    return True


def _glob_of_nothing(chain: Chain) -> bool:
    """A glob that matches no parameter, or leaves B without A."""
    if chain.adapter is None or chain.adapter.stored is None:
        return False
    pair = next(iter(chain.adapter.pairs.values()))
    option, glob = chain.rng.choice(
        [("--include", "no.such.*"), ("--exclude", "no.such.*"), ("--exclude", pair.a_name)]
    )
    line = [chain.adapter.stored.path, *chain.adapter.stored.options(), option, glob]
    chain.shell.run("pet-split", *line, "-o", "out.ckpt", code=MISFIT)
    return True


def _not_finite(chain: Chain) -> bool:
    """A base with a NaN in one of its weights, or with a number beyond the range of the type that is asked for."""
    weights = chain.weights
    name = chain.rng.choice(
        [name for name, tensor in weights.items() if tensor.dtype in ("bf16", "fp32", "fp64")] or [""]
    )
    adapter = _drawn(chain)
    if not name or adapter is None or adapter.stored is None:
        return False
    arrays = {key: tensor.bits for key, tensor in weights.items()}
    value, options = chain.rng.choice([(np.nan, []), (np.inf, []), (1e6, ["--dtype", "fp16"])])
    arrays[name] = np.array(arrays[name], order="C")
    arrays[name].reshape(-1)[chain.rng.randrange(arrays[name].size)] = value
    stored = store(chain.rng, chain.folder, chain.stem("not-finite"), arrays)
    line = [stored.path, adapter.stored.path, *stored.options(), *adapter.options(), *options]
    chain.shell.run("pet-merge", *line, "-o", "out", code=MISFIT)
    return True


def _drawn(chain: Chain) -> Adapter | None:
    if chain.adapter is not None:
        return None
    shapes = {name: tensor.bits.shape for name, tensor in chain.weights.items()}
    adapter = random_adapter(chain.rng, chain.network, shapes, chain.style, form=ALPHA)
    return store_adapter(chain.rng, chain.folder, chain.stem("adapter"), adapter, in_ranks=False)


UNFIT = (
    _unknown_alpha,
    _misfit,
    _codes,
    _not_combined,
    _glob_of_nothing,
    _not_finite,
)
