"""A region of stored bytes is the same slice of the array that they are, and reads nothing beside it."""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import DTYPES, arrays, regions, shapes, sliced, stored

from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Statistics, Stored, byte_stretches, full_region, region_shape
from ckpt_tools.tensors.sources import close_sources, open_source
from surgery.errors import InputChangedError


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_region_of_stored_bytes_is_the_slice_of_the_array(data: st.DataObject) -> None:
    dtype = BY_NAME[data.draw(st.sampled_from(DTYPES))]
    array = data.draw(arrays(data.draw(shapes()), dtype))
    region = data.draw(regions(array.shape))
    cuts = tuple(data.draw(st.lists(st.integers(0, 10_000), max_size=4)))
    with tempfile.TemporaryDirectory() as folder:
        tensor = stored(Path(folder) / "x", array, cuts)
        found = tensor.read(region)
        close_sources()
    assert found.dtype == dtype.numpy
    assert found.shape == region_shape(region)
    assert found.flags.c_contiguous
    assert found.tobytes() == sliced(array, region).tobytes()


@settings(deadline=None)
@given(data=st.data())
def test_the_stretches_of_a_region_are_its_bytes_in_order(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    region = data.draw(regions(shape))
    itemsize = data.draw(st.sampled_from([1, 2, 8]))
    places = np.arange(np.prod(shape, dtype=int) * itemsize).reshape(*shape, itemsize)
    expected = sliced(places, region).reshape(-1).tolist()
    stretches = list(byte_stretches(shape, region, itemsize))
    assert [byte for start, length in stretches for byte in range(start, start + length)] == expected


@pytest.mark.parametrize(
    ("shape", "region", "count"),
    [
        ((4, 6), ((0, 4), (0, 6)), 1),
        ((4, 6), ((1, 3), (0, 6)), 1),
        ((4, 6), ((0, 4), (0, 5)), 4),
        ((2, 4, 6), ((0, 2), (1, 3), (0, 6)), 2),
        ((), (), 1),
        ((0, 3), ((0, 0), (0, 3)), 0),
    ],
)
def test_stretches_are_as_long_as_they_can_be(
    shape: tuple[int, ...], region: tuple[tuple[int, int], ...], count: int
) -> None:
    assert len(list(byte_stretches(shape, region, 2))) == count


def test_the_sizes_are_those_of_the_shape(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.zeros((2, 3), np.int16))
    assert (tensor.size, tensor.nbytes) == (6, 12)
    scalar = stored(tmp_path / "y", np.array(2.5))
    assert (scalar.size, scalar.nbytes) == (1, 8)
    assert scalar.read_all() == np.array(2.5)
    assert scalar.read_all().shape == ()


def test_reading_all_touches_just_the_runs(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.arange(10, dtype=np.int8), cuts=(4,))
    assert tuple(tensor.sources()) == tensor.byte_runs() == tensor.runs
    assert [(run.offset, run.length) for run in tensor.runs] == [(3, 4), (10, 6)]


def test_a_tensor_that_is_computed_has_no_bytes_of_its_own() -> None:
    class Ones(LazyTensor):
        dtype, shape = BY_NAME["fp32"], (2,)

        def read(self, region: object, statistics: Statistics | None = None) -> np.ndarray:
            return np.ones(2, np.float32)

    assert Ones().byte_runs() is None
    assert list(Ones().sources()) == []


@pytest.mark.parametrize("cuts", [(), (5,)])
def test_a_pickled_tensor_reads_the_same(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = stored(tmp_path / "x", array, cuts)
    copy = pickle.loads(pickle.dumps(tensor))
    assert copy == tensor
    assert np.array_equal(copy.read_all(), array)


def test_what_was_read_is_the_callers_own(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.zeros(4, np.float32))
    tensor.read_all()[...] = 1
    assert not tensor.read_all().any()


def test_a_file_that_was_cut_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.zeros(1000))
    os.truncate(tmp_path / "x", 100)
    with pytest.raises(InputChangedError, match="it changed while it was being read"):
        tensor.read_all()


def test_a_file_that_is_cut_between_two_reads_is_noticed(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.zeros(1000))
    tensor.read(((0, 1),))
    os.truncate(tmp_path / "x", 100)
    with pytest.raises(InputChangedError):
        tensor.read(((900, 901),))
    close_sources()


@pytest.mark.parametrize("change", ["written to", "replaced"])
def test_a_file_that_is_another_one_is_noticed(tmp_path: Path, change: str) -> None:
    tensor = stored(tmp_path / "x", np.zeros(10))
    data = (tmp_path / "x").read_bytes()
    if change == "replaced":
        (tmp_path / "x").rename(tmp_path / "y")
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputChangedError):
        tensor.read_all()


def test_a_file_that_is_gone_changed(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x", np.zeros(10))
    (tmp_path / "x").unlink()
    with pytest.raises(InputChangedError, match="x: "):
        tensor.read_all()


def test_a_run_behind_the_end_of_the_file_is_no_endless_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    tensor = Stored(BY_NAME["int8"], (8,), (ByteRun(open_source(tmp_path / "x"), 0, 8),))
    with pytest.raises(InputChangedError):
        tensor.read_all()


def test_threads_read_the_same_tensor_at_once(tmp_path: Path) -> None:
    array = np.arange(4000, dtype=np.int32).reshape(40, 100)
    tensor = stored(tmp_path / "x", array, cuts=(1000, 7001))
    right: list[bool] = []

    def read(row: int) -> None:
        expected = array[row : row + 5, 1:99]
        right.append(all(np.array_equal(tensor.read(((row, row + 5), (1, 99))), expected) for _ in range(20)))

    threads = [threading.Thread(target=read, args=(row,)) for row in range(0, 40, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 8


def test_the_sums_of_two_tiles_add_up() -> None:
    total = Statistics(1, 2.0, 3.0, 4, 5, 6)
    total.add(Statistics(10, 20.0, 30.0, 40, 50, 60))
    assert total == Statistics(11, 22.0, 33.0, 44, 55, 66)


def test_a_full_region_has_the_shape() -> None:
    assert full_region((2, 0, 3)) == ((0, 2), (0, 0), (0, 3))
    assert region_shape(full_region((2, 0, 3))) == (2, 0, 3)
    assert full_region(()) == ()
