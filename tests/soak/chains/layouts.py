"""Random ways to cut tensors over ranks, their strategy files, and slices put together again."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from layout_cases import slice_by_definition
from rank_folders import strategy_of
from strategy_bytes import strategy_bytes, strategy_json

from chains.oracle import WrongTensorError
from ckpt_tools.layout.model import Layout, Strategy

Shapes = Mapping[str, tuple[int, ...]]

SCALARS = ("global_step", "epoch_num", "step_num", "loss_scale")
"""Training scalars, which each rank has and no strategy lists."""


def random_strategy(rng: Random, shapes: Shapes, *, even: bool = False) -> Strategy:
    """A strategy of tensors: up to three stages of up to eight devices, each tensor cut in a way of its own.

    Args:
        rng: What it is drawn by.
        shapes: The tensors.
        even: Whether all slices of a tensor must be alike, and each tensor in one stage.
    """
    listed = [name for name in shapes if not name.startswith(SCALARS) and math.prod(shapes[name]) > 1]
    stages: list[dict[str, Layout]] = [{} for _ in range(min(rng.choice([1, 1, 1, 2, 3]), len(listed)))]
    devices = rng.choice([1, 2, 2, 3, 4, 4, 6, 8])
    for number, name in enumerate(listed):
        chosen = {number} if number < len(stages) else {rng.randrange(len(stages))}
        if not even and rng.random() < 0.1:
            chosen.add(rng.randrange(len(stages)))
        layout = _random_layout(rng, shapes[name], devices, even=even)
        for stage in chosen:
            stages[stage % len(stages)][name] = layout
    return strategy_of(*stages)


def write_strategy(rng: Random, path: Path, strategy: Strategy) -> str:
    """Write it in one of its forms: protobuf or JSON, a file for all stages or a folder with one for each; its name."""
    make = rng.choice([strategy_bytes, strategy_bytes, strategy_json, _packed])
    if len(strategy.stages) == 1 and rng.random() < 0.8:
        path = path.with_suffix(".json" if make is strategy_json else ".ckpt")
        path.write_bytes(make(strategy.stages[0]))
    elif rng.random() < 0.3 and len(strategy.stages) > 1:
        path = path.with_suffix(".ckpt")
        merged = {
            f"{number}-{name}": one for number, stage in enumerate(strategy.stages) for name, one in stage.items()
        }
        path.write_bytes(strategy_bytes(merged))
    else:
        path.mkdir()
        for number, stage in enumerate(strategy.stages):
            suffix = ".json" if make is strategy_json else ".ckpt"
            (path / f"ckpt_strategy_rank_{number * strategy.stage_devices}{suffix}").write_bytes(make(stage, number))
    return path.name


def join_ranks(held: Sequence[Mapping[str, np.ndarray]], strategy: Strategy) -> dict[str, np.ndarray]:
    """Whole tensors from what each rank holds: every element at its place, and replicas alike."""
    assert len(held) == strategy.ranks, f"expected files of {strategy.ranks} ranks, found {len(held)}"
    listed = {name for stage in strategy.stages for name in stage}
    whole: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for rank, arrays in enumerate(held):
        stage = strategy.stages[strategy.stage_of(rank)]
        if stray := {name for name in arrays if name in listed and name not in stage}:
            raise WrongTensorError(f"rank {rank} holds {sorted(stray)}, which are of another stage")
        if missing := stage.keys() - arrays.keys():
            raise WrongTensorError(f"rank {rank} lacks {sorted(missing)}")
        for name, array in arrays.items():
            layout = stage.get(name)
            shape = array.shape if layout is None else _whole_shape(array.shape, layout, rank % strategy.stage_devices)
            places = np.arange(math.prod(shape)).reshape(shape)
            if layout is not None:
                places = slice_by_definition(places, layout, rank % strategy.stage_devices)
            flat = whole.setdefault(name, np.zeros(shape, array.dtype)).reshape(-1)
            known = seen.setdefault(name, np.zeros(shape, np.bool_)).reshape(-1)
            if whole[name].shape != shape or whole[name].dtype != array.dtype or places.shape != array.shape:
                raise WrongTensorError(
                    f"rank {rank}: {name} is {array.dtype} {array.shape}, which does not fit other ranks'"
                )
            again = known[places]
            if array[again].tobytes() != flat[places][again].tobytes():
                raise WrongTensorError(f"rank {rank}: {name} differs from another rank's copy")
            flat[places] = array
            known[places] = True
    if gaps := [name for name, known in seen.items() if not known.all()]:
        raise WrongTensorError(f"no rank has all of {gaps}")
    return whole


def _whole_shape(local: Iterable[int], layout: Layout, rank: int) -> tuple[int, ...]:
    """The shape of the tensor that a slice is of."""
    count = len(layout.device_matrix)
    shape = []
    for axis, (size, cuts) in enumerate(zip(local, layout.tensor_map, strict=True)):
        if axis == 0 and layout.split_shape:
            shape.append(sum(layout.split_shape))
            continue
        shape.append(size * math.prod(layout.device_matrix[count - 1 - cut] for cut in cuts))
    if layout.shard_step and layout.shard_size:
        taken = {cut for cuts in layout.tensor_map for cut in cuts}
        free = math.prod(size for axis, size in enumerate(reversed(layout.device_matrix)) if axis not in taken)
        shape[0] *= free if layout.shard_size == -1 else layout.shard_size
    return tuple(shape)


def _packed(layouts: Mapping[str, Layout], stage: int = 0) -> bytes:
    return strategy_bytes(layouts, stage, packed=True)


def _random_layout(rng: Random, shape: tuple[int, ...], devices: int, *, even: bool) -> Layout:
    matrix = _random_matrix(rng, devices)
    count = len(matrix)
    free = list(range(count))
    rng.shuffle(free)
    tensor_map: list[tuple[int, ...]] = []
    sizes = list(shape)
    for axis in range(len(shape)):
        cuts: list[int] = []
        for device_axis in [one for one in free if rng.random() < 0.6][:2]:
            if sizes[axis] % matrix[count - 1 - device_axis] == 0:
                cuts.append(device_axis)
                free.remove(device_axis)
                sizes[axis] //= matrix[count - 1 - device_axis]
        tensor_map.append(tuple(cuts))
    repeated = sorted(axis for axis in free if matrix[count - 1 - axis] > 1)
    if repeated and rng.random() < 0.4:
        step = math.prod(matrix[count - repeated[0] :])
        everything = math.prod(matrix[count - 1 - axis] for axis in repeated)
        first = matrix[count - 1 - repeated[0]]
        fitting = [(part, part) for part in range(1, first + 1) if first % part == 0] + [(-1, everything)]
        fitting = [(size, parts) for size, parts in fitting if sizes[0] % parts == 0]
        return Layout(matrix, tuple(tensor_map), step, rng.choice(fitting)[0])
    if not even and len(tensor_map[0]) == 1 and rng.random() < 0.15:
        parts = matrix[count - 1 - tensor_map[0][0]]
        if 1 < parts <= shape[0]:
            edges = [0, *sorted(rng.sample(range(1, shape[0]), parts - 1)), shape[0]]
            lengths = tuple(stop - start for start, stop in itertools.pairwise(edges))
            return Layout(matrix, tuple(tensor_map), split_shape=lengths)
    return Layout(matrix, tuple(tensor_map))


def _random_matrix(rng: Random, devices: int) -> tuple[int, ...]:
    matrix: list[int] = []
    while devices > 1:
        factor = rng.choice([size for size in range(2, devices + 1) if devices % size == 0])
        matrix.append(factor)
        devices //= factor
    for _ in range(rng.choice([0, 0, 1])):
        matrix.insert(rng.randrange(len(matrix) + 1), 1)
    return tuple(matrix) or (1,)


def region_of(cell: int, parts: Sequence[int], local: Sequence[int]) -> tuple[slice, ...]:
    """The place of a cell of a grid, by its number."""
    index = np.unravel_index(cell, parts) if len(parts) else ()
    return tuple(slice(int(i) * size, (int(i) + 1) * size) for i, size in zip(index, local, strict=True))


def join_iteration(folder: Path, read: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Whole tensors of Checkpoint 2.0, by its `metadata.json`.

    Args:
        folder: The folder of the iteration.
        read: File name to what the file holds.
    """
    document = json.loads((folder / "metadata.json").read_text())
    whole = {}
    for name, entry in document["state_dict_metadata"].items():
        shape, parts = tuple(entry["global_shape"]), entry["axis_fragmentations"]
        seen = np.zeros(shape, np.int64)
        for chunk in entry["chunk"]:
            key = repr((name, tuple(chunk["global_offset"])))
            place = region_of(chunk["global_offset"][0], parts, chunk["local_shape"])
            for stored in document["storage_data"][key]:
                array = read[stored["file_name"]][name]
                target = whole.setdefault(name, np.zeros(shape, array.dtype))
                target[place] = array
            seen[place] += 1
        if not (seen == 1).all():
            raise WrongTensorError(f"{name}: its chunks do not cover it exactly once")
    return whole
