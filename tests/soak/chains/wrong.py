"""Inputs that have to be refused, with the right exit code and nothing written."""

from __future__ import annotations

import shutil

import numpy as np

from chains.adapters import ALPHA, Adapter, random_adapter, store_adapter
from chains.files import read_file, write_file
from chains.state import Chain
from chains.storing import FILE, RANKS, Stored, store

MISSING, CORRUPT, MISFIT, USAGE, EXISTS = 3, 4, 5, 2, 8


def refuse(chain: Chain) -> bool:
    """One command that is given something wrong."""
    return chain.rng.choice(WRONG)(chain)


def _missing(chain: Chain) -> bool:
    program = chain.rng.choice(["pet-transform", "pet-merge", "pet-split"])
    options = ["--alpha", "8"] if program != "pet-transform" else []
    chain.shell.run(program, "no-such-file.ckpt", *options, "-o", "out.ckpt", code=MISSING)
    return True


def _usage(chain: Chain) -> bool:
    options = chain.rng.choice([["--threads", "0"], ["--dtype", "fp12"], ["--format", "pickle"]])
    chain.shell.run("pet-transform", chain.stored.path, *options, "-o", "out.ckpt", code=USAGE)
    return True


def _own_output(chain: Chain) -> bool:
    if chain.stored.kind != FILE:
        return False
    line = ["pet-transform", chain.stored.path, *chain.stored.options(), "-o", chain.stored.path]
    chain.shell.run(*line, "--force", code=USAGE)
    return True


def _no_strategy(chain: Chain) -> bool:
    if chain.stored.kind != RANKS:
        return False
    chain.shell.run("pet-transform", chain.stored.path, "-o", "out.ckpt", code=USAGE)
    return True


def _cut_short(chain: Chain) -> bool:
    """A file that ends too early: inside of its last tensor."""
    if chain.stored.kind != FILE:
        return False
    source = chain.folder / chain.stored.path
    path = chain.folder / f"{chain.stem('short')}{chain.stored.suffix}"
    data = source.read_bytes()
    path.write_bytes(data[: len(data) - 18])
    chain.shell.run("pet-transform", path.name, "-o", f"{path.stem}-out.ckpt", code=CORRUPT)
    return True


def _bad_crc(chain: Chain) -> bool:
    """A bit is flipped in a tensor of a `.ckpt` that ends with its CRC-32."""
    path = chain.folder / f"{chain.stem('flipped')}.ckpt"
    arrays = {name: tensor.bits for name, tensor in chain.weights.items()}
    write_file(path, arrays, crc=True)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(arrays[max(arrays, key=lambda name: arrays[name].nbytes)].tobytes())
    data[place] ^= 1 << chain.rng.randrange(8)
    path.write_bytes(bytes(data))
    # A transform looks at a CRC as it passes by where it copies all of the file.
    chain.shell.run("pet-transform", path.name, "-o", f"{path.stem}-out.safetensors", "--check-crc", code=CORRUPT)
    return True


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


def _lost_rank(chain: Chain) -> bool:
    if chain.stored.kind != RANKS or chain.stored.strategy is None or chain.stored.strategy.ranks < 2:
        return False
    copy = chain.folder / chain.stem("lost")
    shutil.copytree(chain.folder / chain.stored.path, copy)
    shutil.rmtree(copy / f"rank_{chain.stored.strategy.ranks - 1}")
    chain.shell.run("pet-transform", copy.name, *chain.stored.options(), "-o", "out.ckpt", code=MISFIT)
    return True


def _other_strategy(chain: Chain) -> bool:
    """A strategy of another network."""
    if chain.stored.kind != RANKS:
        return False
    other: Stored = store(
        chain.rng, chain.folder, chain.stem("other"), {"other.weight": np.zeros((8, 8), np.float32)}, RANKS
    )
    line = [chain.stored.path, "--src-strategy", other.strategy_path]
    chain.shell.run("pet-transform", *line, "-o", "out.ckpt", code=MISFIT)
    return True


def _drawn(chain: Chain) -> Adapter | None:
    if chain.adapter is not None:
        return None
    shapes = {name: tensor.bits.shape for name, tensor in chain.weights.items()}
    adapter = random_adapter(chain.rng, chain.network, shapes, chain.style, form=ALPHA)
    return store_adapter(chain.rng, chain.folder, chain.stem("adapter"), adapter, in_ranks=False)


WRONG = (
    _missing,
    _usage,
    _own_output,
    _no_strategy,
    _cut_short,
    _bad_crc,
    _unknown_alpha,
    _misfit,
    _not_finite,
    _lost_rank,
    _other_strategy,
)
