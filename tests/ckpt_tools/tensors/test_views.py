"""A region of a view, however it is nested, is the same slice of the array that it stands for."""

from __future__ import annotations

import itertools
import math
import pickle
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lazy_cases import DTYPES, Case, cases, regions, shapes, sliced, stored

from ckpt_tools.tensors.assembled import Assembled, concatenated
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.lazy import LazyTensor, Statistics, Stored, full_region
from ckpt_tools.tensors.sources import close_sources, read_exactly
from ckpt_tools.tensors.views import (
    Cast,
    Checked,
    Constant,
    Reshaped,
    Sliced,
    Transposed,
    reshape,
    unreshaped,
)


def constant(array: np.ndarray) -> Constant:
    return Constant(array, dtype_of(array))


def drawn(data: st.DataObject, folder: str, depth: int = 3) -> Case:
    numbers = itertools.count()
    dtype = BY_NAME[data.draw(st.sampled_from(DTYPES))]
    return data.draw(cases(lambda: Path(folder) / str(next(numbers)), data.draw(shapes()), dtype, depth))


def assert_reads(tensor: LazyTensor, array: np.ndarray, region: tuple[tuple[int, int], ...]) -> None:
    expected = sliced(array, region)
    found = tensor.read(region)
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype
    assert found.shape == expected.shape
    assert found.flags.c_contiguous
    assert found.tobytes() == expected.tobytes()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_region_of_any_nest_of_views_is_the_slice_of_its_array(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensor, array = drawn(data, folder)
        assert tensor.shape == array.shape
        assert tensor.dtype.numpy == array.dtype
        for _ in range(3):
            assert_reads(tensor, array, data.draw(regions(array.shape)))
        assert_reads(tensor, array, full_region(array.shape))
        close_sources()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_byte_runs_are_the_bytes_of_the_array_in_order(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensor, array = drawn(data, folder)
        runs = tensor.byte_runs()
        if runs is not None:
            content = b"".join(bytes(read_exactly(run.source, run.offset, run.length)) for run in runs)
            assert content == array.tobytes()
            touched = {(run.source, byte) for run in tensor.sources() for byte in _bytes(run)}
            assert touched.issuperset((run.source, byte) for run in runs for byte in _bytes(run))
        close_sources()


def _bytes(run: object) -> range:
    return range(run.offset, run.offset + run.length)  # type: ignore[attr-defined]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_pickled_view_reads_the_same_and_prints_the_same(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensor, array = drawn(data, folder)
        copy = pickle.loads(pickle.dumps(tensor))
        assert repr(copy) == repr(tensor)
        assert_reads(copy, array, full_region(array.shape))
        close_sources()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_was_read_is_the_callers_own(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensor, array = drawn(data, folder, depth=2)
        tensor.read_all().fill(1)
        assert_reads(tensor, array, full_region(array.shape))
        close_sources()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_a_scalar_stays_an_array_without_axes(dtype: type) -> None:
    scalar = np.array(1, dtype)
    for tensor in (constant(scalar), Reshaped(constant(scalar.reshape(1)), ()), Sliced(constant(scalar), ())):
        found = tensor.read(())
        assert found.shape == ()
        assert found.dtype == scalar.dtype
        assert found == scalar


def test_a_constant_prints_its_content_shortly_and_completely() -> None:
    array = np.arange(100_000, dtype=np.float32)
    changed = array.copy()
    changed[50_000] += 1
    assert len(repr(constant(array))) < 500
    assert repr(constant(array)) == repr(constant(array.copy()))
    others = [changed, array.reshape(2, -1), array.view(np.int32), array[:-1]]
    assert len({repr(constant(other)) for other in [array, *others]}) == 5


def test_a_constant_of_a_strided_array_has_its_values() -> None:
    array = np.arange(24.0).reshape(4, 6).T[::2]
    assert_reads(constant(array), array, ((1, 3), (0, 2)))
    assert repr(constant(array)) == repr(constant(array.copy()))


def test_reshaping_bytes_of_a_file_is_a_stored_tensor_again(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.arange(6, dtype=np.int8))
    assert reshape(tensor, (2, 3)) == Stored(tensor.dtype, (2, 3), tensor.runs)
    assert reshape(tensor, (6,)) is tensor


def test_unreshaping_finds_the_tensor_that_is_computed() -> None:
    source = Cast(constant(np.arange(6.0)), BY_NAME["fp16"])
    assert unreshaped(reshape(reshape(source, (2, 3)), (3, 1, 2))) is source
    assert unreshaped(source) is source


class Recorder(LazyTensor):
    """A matrix that notes which regions of it are read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype, self.shape = array, dtype_of(array), array.shape
        self.regions: list[tuple[tuple[int, int], ...]] = []

    def read(self, region: tuple[tuple[int, int], ...], statistics: Statistics | None = None) -> np.ndarray:
        self.regions.append(region)
        return sliced(self.array, region).copy()


def test_views_ask_for_no_more_than_they_need() -> None:
    array = np.arange(24.0).reshape(4, 6)
    source = Recorder(array)
    Transposed(source).read(((1, 3), (0, 2)))
    Sliced(source, ((1, 4), (2, 6))).read(((1, 2), (0, 3)))
    Reshaped(source, (4, 2, 3)).read(((1, 3), (0, 2), (0, 3)))
    Cast(source, BY_NAME["fp16"]).read(((0, 1), (2, 3)))
    assert source.regions == [((0, 2), (1, 3)), ((2, 3), (2, 5)), ((1, 3), (0, 6)), ((0, 1), (2, 3))]


def test_parts_that_a_region_does_not_meet_are_not_read() -> None:
    parts = [Recorder(np.full((2, 3), float(number))) for number in range(3)]
    concatenated(tuple(parts), 1).read(((0, 1), (4, 6)))
    assert [part.regions for part in parts] == [[], [((0, 1), (1, 3))], []]


@pytest.mark.parametrize("axis", [0, 1])
def test_only_parts_behind_each_other_on_the_first_axis_are_bytes_behind_each_other(tmp_path: Path, axis: int) -> None:
    parts = tuple(stored(tmp_path / str(number), np.zeros((2, 3), np.int8)) for number in range(2))
    tensor = concatenated(parts, axis)
    assert tensor.byte_runs() == ((*parts[0].runs, *parts[1].runs) if axis == 0 else None)
    assert list(tensor.sources()) == [*parts[0].runs, *parts[1].runs]


@given(data=st.data())
def test_slices_in_a_grid_are_read_as_the_whole_that_was_cut(data: st.DataObject) -> None:
    whole = np.arange(math.prod(shape := data.draw(shapes(max_axes=3, max_size=6, min_size=1)))).reshape(shape)
    edges = tuple(
        (0, *sorted(data.draw(st.sets(st.integers(0, size), max_size=3)) - {0, size}), size) for size in shape
    )
    cells = itertools.product(*(itertools.pairwise(cuts) for cuts in edges))
    with tempfile.TemporaryDirectory() as folder:
        parts = tuple(stored(Path(folder) / str(number), sliced(whole, cell)) for number, cell in enumerate(cells))
        tensor = Assembled(edges, parts)
        region = data.draw(regions(shape))
        assert np.array_equal(tensor.read(region), sliced(whole, region))
        assert tensor.read(region).shape == sliced(whole, region).shape
        runs = tensor.byte_runs()
        if runs is not None:
            content = b"".join(read_exactly(run.source, run.offset, run.length) for run in runs)
            assert content == whole.tobytes()
        close_sources()


def test_parts_that_are_not_those_of_the_grid_are_refused() -> None:
    part = constant(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="other shapes"):
        Assembled(((0, 2, 5), (0, 3)), (part, part))
    with pytest.raises(ValueError, match="other shapes"):
        Assembled(((0, 2, 4), (0, 3)), (part,))
    with pytest.raises(ValueError, match="several types"):
        Assembled(((0, 2, 4), (0, 3)), (part, constant(np.zeros((2, 3)))))


def test_a_part_that_is_computed_makes_the_whole_computed(tmp_path: Path) -> None:
    part = stored(tmp_path / "x", np.zeros(2, np.float32))
    assert concatenated((part, constant(np.zeros(2, np.float32)))).byte_runs() is None
    assert Sliced(Cast(part, BY_NAME["fp16"]), ((0, 1),)).byte_runs() is None


def test_a_cast_counts_what_is_not_finite_before_and_behind_it() -> None:
    statistics = Statistics()
    values = np.array([1.0, np.nan, np.inf, 1e5], np.float32)
    Cast(constant(values), BY_NAME["fp16"]).read(((0, 4),), statistics)
    assert (statistics.nonfinite_input, statistics.nonfinite_output) == (2, 3)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
def test_a_checked_tensor_passes_bits_on_and_counts_what_is_not_finite(dtype: str) -> None:
    values = np.linspace(-2.0, 2.0, 300_000).astype(BY_NAME[dtype].numpy).reshape(300, 1000)
    values[0, 0], values[150, 3], values[299, 999] = np.nan, np.inf, -np.inf
    statistics = Statistics()
    tensor = Checked(constant(values))
    pieces = list(tensor.pieces(full_region(tensor.shape), statistics))
    assert len(pieces) > 1
    assert b"".join(piece.tobytes() for piece in pieces) == values.tobytes()
    assert statistics == Statistics(nonfinite_input=3)
    assert tensor.byte_runs() is None  # or the writer would copy it unseen


@settings(deadline=None)
@given(data=st.data())
def test_pieces_follow_each_other_as_the_values_do(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(), (0, 3), (7,), (300_001,), (5, 70_000), (3, 2, 65_537), (200, 3000)]))
    values = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    region = data.draw(regions(shape))
    pieces = list(constant(values).pieces(region))
    assert b"".join(piece.tobytes() for piece in pieces) == np.asarray(sliced(values, region)).tobytes()
