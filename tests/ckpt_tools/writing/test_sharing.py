"""Rectangles of tensors in several files: every byte is right, and each element is read once for all of them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from helpers import materialise
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import arrays, regions, shapes, stored
from soak import examples

from ckpt_tools.tensors.assembled import concatenated
from ckpt_tools.tensors.dtypes import BY_NAME, DType, dtype_of
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics, region_shape
from ckpt_tools.tensors.sources import close_sources
from ckpt_tools.tensors.views import Constant, Sliced
from ckpt_tools.writing import executors
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile, Plan
from ckpt_tools.writing.sharing import find_shares
from ckpt_tools.writing.write import execute


@dataclass(frozen=True)
class Recorded(LazyTensor):
    """A tensor that remembers what was read of it."""

    source: LazyTensor
    reads: list[Region] = field(default_factory=list, repr=False)

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        self.reads.append(region)
        return self.source.read(region, statistics)

    def times_read(self) -> np.ndarray:
        """How often each element was read."""
        counts = np.zeros(self.shape, np.int64)
        for region in self.reads:
            counts[tuple(slice(start, stop) for start, stop in region)] += 1
        return counts


def constant(*shape: int) -> Constant:
    array = np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape)
    return Constant(array, dtype_of(array))


def files_of(*groups: list[LazyTensor], format: str = "safetensors") -> list[OutputFile]:
    """A file for each list of tensors, in a folder of its own."""
    return [
        OutputFile(f"rank_{number}/x.{format}", format, tuple((f"t{i}", tensor) for i, tensor in enumerate(group)))
        for number, group in enumerate(groups)
    ]


def assert_written(folder: Path, files: list[OutputFile]) -> None:
    for file in files:
        assert (folder / file.name).read_bytes() == materialise(file.layout(), file.tensors)


@st.composite
def wholes(draw: st.DrawFn, folder: Path) -> list[Recorded]:
    """Tensors in memory, in files, and of two parts."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        dtype = BY_NAME[draw(st.sampled_from(["int8", "bf16", "fp32", "int64"]))]
        array = draw(arrays(draw(shapes(3, 9)), dtype))
        kind = draw(st.sampled_from(["constant", "stored", "joined"]))
        tensor: LazyTensor = Constant(array, dtype)
        if kind != "constant":
            tensor = stored(folder / f"in{number}", array, tuple(draw(st.lists(st.integers(0, 500), max_size=2))))
        if kind == "joined" and array.ndim:
            tensor = concatenated((tensor, tensor), draw(st.integers(0, array.ndim - 1)))
        found.append(Recorded(tensor))
    return found


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_any_rectangles_in_any_files_are_written_right_and_read_once(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = data.draw(wholes(folder))
        groups: list[list[LazyTensor]] = []
        for _ in range(data.draw(st.integers(1, 4))):
            group: list[LazyTensor] = []
            for tensor in data.draw(st.lists(st.sampled_from(tensors), max_size=4)):
                region = data.draw(st.none() | regions(tensor.shape))
                group.append(tensor if region is None else Sliced(tensor, region))
            groups.append(group)
        files = files_of(*groups, format=data.draw(st.sampled_from(["safetensors", "ckpt"])))
        budget = Budget(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 100)))
        execute(Plan(folder / "out", True, tuple(files)), budget=budget)
        for tensor in (tensor for tensor in tensors if tensor.shape):  # a scalar is not worth sharing
            assert tensor.times_read().max(initial=0) <= 1
        assert_written(folder / "out", files)
        close_sources()


def test_what_several_files_hold_is_read_once(tmp_path: Path) -> None:
    whole = Recorded(constant(60, 40))
    top, left = Sliced(whole, ((0, 30), (0, 40))), Sliced(whole, ((0, 60), (0, 7)))
    files = files_of([whole], [top, left], [left])
    execute(Plan(tmp_path / "out", True, tuple(files)), budget=Budget(2, 100))
    assert whole.times_read().min() == whole.times_read().max() == 1
    assert_written(tmp_path / "out", files)


@pytest.mark.parametrize(("files", "tensors", "times"), [(1000, 2**18, 1), (64, 2**18, 4), (1000, 100, 3)])
def test_files_of_hundreds_of_ranks_read_it_once_as_far_as_files_and_memory_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, tensors: int, times: int
) -> None:
    monkeypatch.setattr(executors, "open_files_limit", lambda: executors._OTHER_FILES + files)
    monkeypatch.setattr(executors, "_OPEN_TENSORS", tensors)
    whole = Recorded(constant(40, 50))
    ranks = files_of(*([whole] for _ in range(250)))
    execute(Plan(tmp_path / "out", True, tuple(ranks)), budget=Budget(2, 1000))
    assert whole.times_read().min() == whole.times_read().max() == times
    assert_written(tmp_path / "out", ranks)


def test_of_a_shared_tensor_only_rows_that_a_file_wants_are_read(tmp_path: Path) -> None:
    whole = Recorded(constant(64, 10))
    takers = [Sliced(whole, ((8, 16), (2, 5))), Sliced(whole, ((48, 50), (0, 3)))]
    files = files_of(*([taker] for taker in takers))
    execute(Plan(tmp_path / "out", True, tuple(files)), budget=Budget(1, 40))
    rows = whole.times_read().max(axis=1)
    assert rows[8:16].tolist() == [1] * 8
    assert rows[:8].sum() + rows[20:48].sum() + rows[52:].sum() == 0
    assert_written(tmp_path / "out", files)


@pytest.mark.parametrize("regions", [[((0, 3), (0, 4)), ((3, 6), (0, 4))], [((2, 3), (1, 4))], [((0, 6), (0, 4))]])
def test_stretches_of_their_own_are_left_to_each_file(regions: list[Region]) -> None:
    whole = constant(6, 4)
    assert find_shares(files_of(*([Sliced(whole, region)] for region in regions))) == []


@pytest.mark.parametrize(
    "regions",
    [
        [((0, 4), (0, 4)), ((3, 6), (0, 4))],
        [((0, 6), (0, 4)), ((0, 6), (0, 4))],
        [((0, 6), (0, 2)), ((0, 6), (2, 4))],
        [((1, 5), (1, 3))],
        [((0, 6), (0, 4)), ((5, 6), (3, 4))],
    ],
)
def test_what_overlaps_or_lies_scattered_is_shared(regions: list[Region]) -> None:
    whole = constant(6, 4)
    (share,) = find_shares(files_of(*([Sliced(whole, region)] for region in regions)))
    assert share.tensor is whole
    assert [(taker.file, taker.index, taker.region) for taker in share.takers] == [
        (number, 0, region) for number, region in enumerate(regions)
    ]
    around = [(min(a for a, _ in spans), max(b for _, b in spans)) for spans in zip(*regions, strict=True)]
    assert share.region == tuple(around)


def test_a_whole_tensor_in_two_files_is_shared_and_a_scalar_is_not() -> None:
    whole, scalar = constant(3), constant()
    (share,) = find_shares(files_of([scalar, whole], [whole, scalar]))
    assert share.tensor is whole
    assert [(taker.file, taker.index) for taker in share.takers] == [(0, 1), (1, 0)]


def test_shares_come_in_the_order_of_the_files() -> None:
    tensors = [constant(4) for _ in range(5)]
    shares = find_shares(files_of(tensors, tensors[::-1]))
    assert [share.tensor for share in shares] == tensors


def test_a_stretch_is_not_shared_because_of_how_it_is_cut(tmp_path: Path) -> None:
    whole = Recorded(constant(8, 1, 6))
    halves = [Sliced(whole, ((0, 4), (0, 1), (0, 6))), Sliced(whole, ((4, 8), (0, 1), (0, 6)))]
    files = files_of(*([half] for half in halves))
    assert find_shares(files) == []
    execute(Plan(tmp_path / "out", True, tuple(files)))
    assert [region_shape(region) for region in whole.reads] == [(4, 1, 6)] * 2
    assert_written(tmp_path / "out", files)
