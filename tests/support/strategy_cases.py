"""Layouts as hypothesis draws them, and refusals of strategy files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import strategies as st

from ckpt_tools.layout import Layout, Strategy, read_strategy
from surgery.errors import CorruptInputError, MismatchError, PetSurgeryError

DEVICES = 16

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="-"), min_size=1, max_size=8)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A sound layout over 16 devices."""
    matrix: list[int] = []
    while (left := DEVICES // math.prod(matrix)) > 1:
        matrix.append(draw(st.sampled_from([size for size in (1, 2, 4, 8, 16) if left % size == 0])))
        if len(matrix) == 5:
            matrix.append(DEVICES // math.prod(matrix))
            break
    axes = draw(st.permutations(range(len(matrix))))
    tensor_map = []
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.integers(0, min(2, len(axes))))
        tensor_map.append(tuple(axes[:count]))
        axes = axes[count:]
    lengths = st.lists(st.integers(1, 2**40), max_size=3).map(tuple)
    offsets = st.lists(st.integers(-(2**40), 2**40), max_size=3).map(tuple)
    shards = st.sampled_from([0, 1, 2, 16])
    return Layout(
        tuple(matrix), tuple(tensor_map), draw(shards), draw(shards) - 1, draw(lengths), draw(offsets), draw(shards)
    )


def layouts_by_name() -> st.SearchStrategy[dict[str, Layout]]:
    """The layouts of a stage; no name is of the form of a merged file's."""
    return st.dictionaries(NAMES, layouts(), min_size=1, max_size=6)


def refusal(path: Path, data: bytes | None = None, exit_code: int = 4) -> PetSurgeryError:
    """The error of reading a strategy; each problem in it names the path, what was found, and what to do.

    Args:
        path: The file or folder.
        data: What to write to the file first; None to read what is there.
        exit_code: What the error means.
    """
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(PetSurgeryError) as caught:
        read_strategy(path)
    assert caught.value.exit_code == exit_code
    for problem in caught.value.problems:
        assert problem.where.startswith(str(path))
        assert problem.found
        assert problem.expected
        assert problem.remedy
    assert len(caught.value.problems) <= 20
    assert len(str(caught.value)) < 20_000
    return caught.value


def strategy_or_refusal(path: Path) -> Strategy | None:
    """What damaged bytes are read as: a strategy, or None where they are refused as they should be."""
    try:
        return read_strategy(path)
    except (CorruptInputError, MismatchError):
        return None


def is_sound(strategy: Strategy) -> bool:
    """Whether slices can be computed of all layouts."""
    layouts = [layout for stage in strategy.stages for layout in stage.values()]
    return all(layout.devices == strategy.stage_devices >= 1 for layout in layouts) and all(
        0 <= axis < len(layout.device_matrix) for layout in layouts for cuts in layout.tensor_map for axis in cuts
    )
