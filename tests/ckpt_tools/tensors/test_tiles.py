"""A slice of a fold has the bits of the same slice of the whole fold, on the BLAS that is installed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import regions, sliced
from threadpoolctl import threadpool_limits

from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.folding import DoraMerged, Folded, LowRankTerm, Merged
from ckpt_tools.tensors.lazy import Region
from ckpt_tools.tensors.tiles import whole_columns, whole_rows
from ckpt_tools.tensors.views import Constant, Transposed


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the writer has it: its own threads tile."""
    with threadpool_limits(1, "blas"):
        yield


def constant(seed: int, *shape: int, dtype: str = "fp32") -> Constant:
    array = np.random.default_rng(seed).normal(size=shape).astype(BY_NAME[dtype].numpy)
    return Constant(array, dtype_of(array))


def term(seed: int, shape: tuple[int, ...], rank: int, transposed: bool = False) -> LowRankTerm:
    *stack, rows, columns = shape
    if transposed:
        return LowRankTerm(
            Transposed(constant(seed, *stack, rank, rows)), Transposed(constant(seed + 1, *stack, columns, rank)), 0.3
        )
    return LowRankTerm(constant(seed, *stack, rows, rank), constant(seed + 1, *stack, rank, columns), 0.3)


def assert_same_bits(fold: Folded, whole: np.ndarray, region: Region) -> None:
    found = fold.read(region)
    expected = sliced(whole, region)
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_slice_of_a_fold_has_the_bits_of_the_slice_of_the_whole(data: st.DataObject) -> None:
    stack = data.draw(st.sampled_from([(), (), (2,)]))
    shape = (*stack, data.draw(st.integers(1, 100)), data.draw(st.integers(1, 90) | st.integers(2040, 2120)))
    ranks = data.draw(st.lists(st.integers(1, 40) | st.integers(1, 300), min_size=1, max_size=2))
    terms = tuple(term(10 * number, shape, rank, bool(number)) for number, rank in enumerate(ranks))
    weight = constant(7, *shape, dtype=data.draw(st.sampled_from(["fp32", "fp64", "bf16"])))
    fold = Merged(weight, terms, weight.dtype)  # float32 shows differences that rounding would hide
    whole = fold.read_all()
    for _ in range(4):
        assert_same_bits(fold, whole, data.draw(regions(shape)))


@pytest.mark.parametrize("rank", [1, 8, 16, 32, 33, 64, 257])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_rows_columns_and_elements_have_the_bits_of_the_whole(rank: int, dtype: str) -> None:
    shape = (67, 2100)
    fold = Merged(constant(0, *shape, dtype=dtype), (term(1, shape, rank),), BY_NAME[dtype])
    whole = fold.read_all()
    for row in (0, 1, 31, 32, 63, 64, 66):
        assert_same_bits(fold, whole, ((row, row + 1), (0, 2100)))
    for column in (0, 1, 2046, 2047, 2048, 2099):
        assert_same_bits(fold, whole, ((0, 67), (column, column + 1)))
        assert_same_bits(fold, whole, ((65, 66), (column, column + 1)))


@pytest.mark.parametrize("axis", [0, 1])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_slice_of_dora_has_the_bits_of_the_slice_of_the_whole(axis: int, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 140)), data.draw(st.integers(1, 70)))
    fold = DoraMerged(
        constant(0, *shape),
        term(1, shape, data.draw(st.integers(1, 70))),
        constant(3, shape[axis]),
        axis,
        BY_NAME["fp32"],
    )
    whole = fold.read_all()
    for _ in range(4):
        assert_same_bits(fold, whole, data.draw(regions(shape)))


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_whole_tiles_hold_the_slice_and_end_with_the_matrix(first: int, second: int, third: int) -> None:
    start, stop, count = sorted((first, second, third))
    found = whole_rows((start, stop), count)
    assert found[0] <= start
    assert stop <= found[1] <= count
    assert found[0] % 64 == 0
    assert found[1] == count or found[1] % 64 == 0
    assert start - found[0] < 64
    assert found[1] - stop < 64


def test_the_columns_of_tiles_are_wider_than_the_rows_are_high() -> None:
    assert whole_columns((2000, 2100), 10_000) == (0, 4096)
    assert whole_columns((2048, 2049), 2050) == (2048, 2050)
