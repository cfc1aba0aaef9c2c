"""A small sharded checkpoint, strategies for it, and refusals of transforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from layout_cases import layouts
from merge_cases import random, tree
from rank_folders import strategy_of, write_ranks
from strategy_bytes import strategy_bytes

from ckpt_tools import transform
from ckpt_tools.layout.model import Layout, Strategy
from ckpt_tools.tensors.dtypes import BY_NAME
from surgery.errors import PetSurgeryError

Held = dict[str, np.ndarray]

TYPES = ("fp32", "bf16", "fp16", "int8", "fp8_e4m3")

ROWS, COLUMNS, WHOLE = ((0,), ()), ((), (0,)), ((), ())

TENSORS = {
    "embedding.weight": random(0, 8, 4, dtype="bf16"),
    "layer.weight": random(1, 4, 8, dtype="bf16"),
    "norm.weight": random(2, 6, dtype="fp32"),
    "global_step": np.array(7, np.int32),
}
SOURCE = strategy_of(
    {
        "embedding.weight": Layout((2, 2), ROWS),
        "layer.weight": Layout((2, 2), COLUMNS),
        "norm.weight": Layout((2, 2), ((),)),
    }
)
"""Four ranks: two parts of each matrix, twice."""
TARGET = strategy_of(
    {
        "embedding.weight": Layout((2,), COLUMNS),
        "layer.weight": Layout((2,), ROWS),
        "norm.weight": Layout((2,), ((0,),)),
    }
)
"""Two ranks."""


def write_strategy(path: Path, strategy: Strategy) -> Path:
    """A file, or a folder with a file for each stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(strategy.stages) == 1:
        path.write_bytes(strategy_bytes(strategy.stages[0]))
        return path
    path.mkdir()
    for number, stage in enumerate(strategy.stages):
        (path / f"stage_{number}.ckpt").write_bytes(strategy_bytes(stage, stage=number))
    return path


def write_case(
    folder: Path,
    suffix: str = ".ckpt",
    change: Callable[[int, Held], None] = lambda rank, held: None,
    tensors: Held = TENSORS,
    source: Strategy = SOURCE,
    target: Strategy = TARGET,
) -> Path:
    """Ranks' files in `in`, and the strategies `src.ckpt` and `dst.ckpt`."""
    write_ranks(folder / "in", tensors, source, lambda rank: f"llama_rank_{rank}-3_2{suffix}", change)
    write_strategy(folder / "src.ckpt", source)
    write_strategy(folder / "dst.ckpt", target)
    return folder


@st.composite
def twice_cut(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], Strategy, Strategy]:
    """Tensors, and two ways to cut them for two numbers of devices."""
    sizes = draw(st.sampled_from([(8, 4), (4, 8), (2, 3), (3, 2), (6, 4), (4, 4), (1, 4), (8, 1)]))
    tensors, cuts = {}, ({}, {})
    for number in range(draw(st.integers(1, 3))):
        axes = draw(st.integers(1, 3))
        pair = [draw(layouts(axes, devices)) for devices in sizes]
        # A shape that both fit: a common multiple on each axis.
        shape = tuple(int(np.lcm(a, b)) for a, b in zip(pair[0][1], pair[1][1], strict=True))
        name = f"layer-{number}.weight"
        tensors[name] = random(number, *shape, size=9.0).astype(BY_NAME[draw(st.sampled_from(TYPES))].numpy)
        for side, (layout, _) in zip(cuts, pair, strict=True):
            side[name] = layout
    return tensors, strategy_of(cuts[0]), strategy_of(cuts[1])


def refusal(folder: Path, exit_code: int, source: str = "in", **options: object) -> PetSurgeryError:
    """The error of a transform of what lies in the folder; it wrote nothing, and every problem says what is wrong."""
    given = {"src_strategy": "src.ckpt", "dst_strategy": "dst.ckpt", "output": "out"} | options
    paths = {
        key: folder / value if key in ("src_strategy", "dst_strategy", "output") and isinstance(value, str) else value
        for key, value in given.items()
    }
    before = tree(folder)
    with pytest.raises(PetSurgeryError) as caught:
        transform(folder / source, **paths)
    assert caught.value.exit_code == exit_code, str(caught.value)
    assert tree(folder) == before
    assert not list(folder.rglob("*.pet-surgery"))
    assert len(str(caught.value)) < 30_000
    for problem in caught.value.problems:
        assert problem.where
        assert problem.found
        assert problem.expected or problem.remedy or "more problems" in problem.found, str(problem)
    return caught.value
