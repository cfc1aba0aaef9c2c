"""Inputs that have to be refused, with the right exit code and nothing written."""

from __future__ import annotations

import shutil

import ml_dtypes
import numpy as np

from chains.files import write_file
from chains.networks import dtypes
from chains.oracle import cast, fresh
from chains.running import CORRUPT, MISFIT, MISSING, USAGE
from chains.state import Chain
from chains.storing import FILE, RANKS, Stored, store
from chains.unfit import UNFIT


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


def _no_such_type(chain: Chain) -> bool:
    """The scales of FP8 have a type that no `.ckpt` has; a `.safetensors` keeps them, and `--dtype` does, too."""
    arrays = {name: tensor.bits for name, tensor in chain.weights.items()}
    arrays["fp8_scales"] = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
    path = f"{chain.stem('scales')}.safetensors"
    write_file(chain.folder / path, arrays)
    chain.shell.run("pet-transform", path, "-o", "out.ckpt", code=MISFIT)
    place = Stored(f"{chain.stem('scales')}.safetensors", FILE, ".safetensors")
    dtype = chain.rng.choice(dtypes())
    chain.shell.run("pet-transform", path, "--dtype", dtype, "-o", place.path, outputs=(place.path,))
    chain.check(place, {name: cast(fresh(array), dtype) for name, array in arrays.items()})
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


WRONG = (
    *UNFIT,
    _missing,
    _usage,
    _own_output,
    _no_strategy,
    _cut_short,
    _bad_crc,
    _no_such_type,
    _lost_rank,
    _other_strategy,
)
