"""A checkpoint on the disk: in which format, cut how, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from iteration_folders import MEANINGS, cell_region, cells, describe, file_name, write_metadata
from rank_folders import slices_of_rank

from chains.files import Arrays, read_file, read_folder, write_file
from chains.layouts import SCALARS, Shapes, join_iteration, join_ranks, random_strategy, write_strategy
from ckpt_tools.layout.model import Strategy

SUFFIXES = (".ckpt", ".safetensors")
FILE, FOLDER, RANKS, ITERATION = "file", "folder", "ranks", "iteration"
KINDS = (FILE, FOLDER, RANKS, RANKS, ITERATION)


@dataclass(frozen=True)
class Stored:
    """Where a checkpoint lies.

    Attributes:
        path: Its path in the chain's folder.
        kind: One of `KINDS`.
        suffix: That of its files.
        strategy: How ranks cut it, and where the strategy file is.
        replicated: What the strategy does not list, as all ranks have all of it.
    """

    path: str
    kind: str
    suffix: str
    strategy: Strategy | None = None
    strategy_path: str = ""
    replicated: tuple[str, ...] = ()

    def options(self, option: str = "--src-strategy") -> list[str]:
        """The options of a command that reads it."""
        if self.strategy is None or self.kind == ITERATION:
            return []
        patterns = (part for pattern in self.replicated for part in ("--replicated", pattern))
        return [option, self.strategy_path, *patterns]


def store(rng: Random, folder: Path, stem: str, arrays: Arrays, kind: str | None = None) -> Stored:
    """Write a checkpoint in a random form, as other programs write it."""
    kind = kind or rng.choice(KINDS)
    suffix = rng.choice(SUFFIXES)
    crc = rng.random() < 0.4
    metadata = rng.choice([None, {"format": "pt"}, {"format": "ms"}])
    if kind == FILE:
        path = folder / f"{stem}{suffix}"
        write_file(path, arrays, crc=crc, metadata=metadata)
        return Stored(path.name, FILE, suffix)
    (folder / stem).mkdir()
    if kind == FOLDER:
        _write_shards(rng, folder / stem, arrays, suffix, crc=crc, metadata=metadata)
        return Stored(stem, FOLDER, suffix)
    if kind == ITERATION:
        _write_iteration(rng, folder / stem, arrays)
        return Stored(stem, ITERATION, ".safetensors")
    strategy = random_strategy(rng, {name: array.shape for name, array in arrays.items()})
    replicated: tuple[str, ...] = ()
    if rng.random() < 0.2:
        strategy, replicated = _leave_out(rng, strategy)
    _write_ranks(rng, folder / stem, arrays, strategy, suffix, crc=crc)
    strategy_path = write_strategy(rng, folder / f"{stem}-strategy", strategy)
    return Stored(stem, RANKS, suffix, strategy, strategy_path, replicated)


def target(rng: Random, folder: Path, stem: str, shapes: Shapes, kind: str | None = None) -> tuple[Stored, list[str]]:
    """A place for an output, and the options that ask for it."""
    kind = kind or rng.choice(KINDS)
    suffix = rng.choice(SUFFIXES)
    form = ["--format", suffix[1:]]
    if kind == FILE:
        return Stored(f"{stem}{suffix}", FILE, suffix), []
    if kind == FOLDER:
        return Stored(stem, FOLDER, suffix), [*form, "--max-shard-size", rng.choice(["3KB", "20KB", "1MB"])]
    strategy = random_strategy(rng, shapes, even=kind == ITERATION)
    path = write_strategy(rng, folder / f"{stem}-strategy", strategy)
    if kind == ITERATION:
        return Stored(stem, ITERATION, ".safetensors", strategy, path), ["--format", kind, "--dst-strategy", path]
    return Stored(stem, RANKS, suffix, strategy, path), [*form, "--dst-strategy", path]


def read(folder: Path, stored: Stored) -> dict[str, np.ndarray]:
    """All tensors, whole."""
    path = folder / stored.path
    if stored.kind == FILE:
        return read_file(path)
    if stored.kind == FOLDER:
        return read_folder(path)
    if stored.kind == ITERATION:
        (iteration,) = path.glob("iteration_*")
        return join_iteration(iteration, {file.name: read_file(file) for file in iteration.glob("*.safetensors")})
    assert stored.strategy is not None
    ranks = [path / f"rank_{rank}" for rank in range(stored.strategy.ranks)]
    assert len(list(path.glob("rank_*"))) == len(ranks)
    files = [max(rank.iterdir(), key=lambda file: file.name) for rank in ranks]
    assert {file.suffix for file in files} == {stored.suffix}
    return join_ranks([read_file(file) for file in files], stored.strategy)


def _write_shards(
    rng: Random, folder: Path, arrays: Arrays, suffix: str, *, crc: bool, metadata: Mapping[str, str] | None
) -> None:
    stem = "model" if suffix == ".safetensors" else "mindspore_model"
    names = list(arrays)
    rng.shuffle(names)
    count = rng.randint(1, min(3, len(names)))
    if count == 1:
        write_file(folder / f"{stem}{suffix}", arrays, crc=crc, metadata=metadata)
        return
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}{suffix}"
        part = names[number::count]
        write_file(folder / file, {name: arrays[name] for name in part}, crc=crc, metadata=metadata)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(array.nbytes for array in arrays.values())}, "weight_map": weight_map}
    write_json(folder / f"{stem}{suffix}.index.json", index)


def write_json(path: Path, document: object) -> None:
    """A JSON document."""
    path.write_text(json.dumps(document), encoding="utf-8")


def _write_ranks(rng: Random, folder: Path, arrays: Arrays, strategy: Strategy, suffix: str, *, crc: bool) -> None:
    """The files of all ranks, now and then beside those of an earlier step, or each slice on one rank alone."""
    prefix = rng.choice(["llama_rank_{}", "checkpoint_{}"])
    earlier, is_thin = rng.random() < 0.2, suffix == ".safetensors" and rng.random() < 0.2
    seen: set[tuple[str, bytes]] = set()
    places = {name: np.arange(array.size).reshape(array.shape) for name, array in arrays.items()}
    listed = {name for stage in strategy.stages for name in stage}
    for rank in range(strategy.ranks):
        held = {name: np.array(one, order="C") for name, one in slices_of_rank(arrays, strategy, rank).items()}
        if is_thin:
            regions = slices_of_rank(places, strategy, rank)
            slices = {name: (name, regions[name].tobytes()) for name in held if name in listed}
            held = {name: one for name, one in held.items() if slices.get(name) not in seen}
            seen |= set(slices.values())
        metadata = {"format": "ms", "remove_redundancy": str(is_thin)} if suffix == ".safetensors" else None
        path = folder / f"rank_{rank}" / f"{prefix.format(rank)}-2_9{suffix}"
        write_file(path, held, crc=crc, metadata=metadata)
        if earlier:
            zeros = {name: np.zeros_like(array) for name, array in held.items()}
            write_file(path.with_name(f"{prefix.format(rank)}-1_10{suffix}"), zeros, crc=crc, metadata=metadata)


def _write_iteration(rng: Random, folder: Path, arrays: Arrays) -> None:
    ranks = rng.choice([1, 2, 4, 6])
    tensors = {name: (array, _random_parts(rng, array.shape, ranks)) for name, array in arrays.items()}
    iteration = folder / "iteration_00000005"
    iteration.mkdir()
    contents: dict[str, dict[str, np.ndarray]] = {}
    for rank in range(ranks):
        for name, (array, parts) in tensors.items():
            grid = cells(parts)
            place = tuple(slice(*axis) for axis in cell_region(array.shape, parts, grid[rank % len(grid)]))
            contents.setdefault(file_name(name, rank, ranks), {})[name] = np.array(array[place])
    for file, held in contents.items():
        write_file(iteration / file, held, metadata={"format": "ms"})
    write_metadata(iteration, describe(tensors, ranks, MEANINGS[rng.choice(list(MEANINGS))]))
    write_json(iteration / "common.json", {"global_step": 5})
    (folder / "latest_checkpointed_iteration.txt").write_text("5")


def _random_parts(rng: Random, shape: tuple[int, ...], ranks: int) -> tuple[int, ...]:
    parts = []
    for size in shape:
        part = rng.choice([one for one in range(1, ranks + 1) if ranks % one == 0 and size % one == 0])
        parts.append(part)
        ranks //= part
    return tuple(parts)


def _leave_out(rng: Random, strategy: Strategy) -> tuple[Strategy, tuple[str, ...]]:
    """The strategy without one of the parameters, where each stage keeps some."""
    names = [name for stage in strategy.stages for name in stage]
    name = rng.choice(names)
    stages = tuple({key: one for key, one in stage.items() if key != name} for stage in strategy.stages)
    if not all(stages):
        return strategy, ()
    return replace(strategy, stages=stages), (name,)


def is_training_only(name: str) -> bool:
    """Whether it is an optimizer's state or a training scalar."""
    return name.startswith("adam_") or name in SCALARS
