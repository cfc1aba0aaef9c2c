"""Rank folders as distributed training leaves them: each rank's slice of every tensor, by the definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from layout_cases import slice_by_definition
from merge_cases import save

from ckpt_tools.formats import open_checkpoint
from ckpt_tools.layout.model import Layout, Strategy

Arrays = Mapping[str, np.ndarray]


def strategy_of(*stages: Mapping[str, Layout], path: Path = Path("strategy.ckpt")) -> Strategy:
    """A strategy of these stages, which have the devices of their first layout."""
    devices = next(layout.devices for stage in stages for layout in stage.values())
    return Strategy(path, tuple(stages), devices)


def slices_of_rank(tensors: Arrays, strategy: Strategy, rank: int) -> dict[str, np.ndarray]:
    """What a rank holds: the slices of its stage's parameters, and all of what no stage lists."""
    layouts = strategy.stages[strategy.stage_of(rank)]
    listed = {name for stage in strategy.stages for name in stage}
    number = rank % strategy.stage_devices
    return {
        name: slice_by_definition(array, layouts[name], number) if name in layouts else array
        for name, array in tensors.items()
        if name in layouts or name not in listed
    }


def write_ranks(
    folder: Path,
    tensors: Arrays,
    strategy: Strategy,
    name: Callable[[int], str] = "llama_rank_{}-3_2.ckpt".format,
    change: Callable[[int, dict[str, np.ndarray]], None] = lambda rank, held: None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the files of all ranks; `change` may spoil what one of them holds."""
    for rank in range(strategy.ranks):
        held = slices_of_rank(tensors, strategy, rank)
        change(rank, held)
        (folder / f"rank_{rank}").mkdir(parents=True, exist_ok=True)
        save(folder / f"rank_{rank}" / name(rank), held, metadata=metadata)
    return folder


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint."""
    return {name: tensor.read_all() for name, tensor in open_checkpoint(path).tensors.items()}


def read_ranks(folder: Path) -> list[dict[str, np.ndarray]]:
    """What each rank's file holds."""
    count = len(list(folder.glob("rank_*")))
    return [read_arrays(next((folder / f"rank_{rank}").iterdir())) for rank in range(count)]


def assert_same_arrays(found: Arrays, expected: Arrays) -> None:
    """The same names, types, shapes and bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name
