"""The low-rank formulas against wider arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery.lowrank import column_norms_squared, dora_factor, lora_delta, row_norms_squared

DTYPES = (np.float32, np.float64)


def factors(seed: int, rows: int, rank: int, columns: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, rank)).astype(dtype), rng.normal(size=(rank, columns)).astype(dtype)


def delta(left: np.ndarray, right: np.ndarray, scaling: float = 1.0) -> np.ndarray:
    out = np.full((left.shape[0], right.shape[1]), np.nan, left.dtype)
    lora_delta(left, right, scaling, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 8, 31, 32, 33, 64, 100, 300])
@pytest.mark.parametrize("scaling", [1.0, 0.5, -3.7])
def test_a_delta_is_the_scaled_product(dtype: type, rank: int, scaling: float) -> None:
    left, right = factors(rank, 45, rank, 70, dtype)
    wide = [factor.astype(np.longdouble) for factor in (left, right)]
    exact = scaling * (wide[0] @ wide[1])
    magnitude = abs(scaling) * (np.abs(wide[0]) @ np.abs(wide[1]))
    allowed = (rank + 2) * np.finfo(dtype).eps / 2 * magnitude
    assert np.all(np.abs(delta(left, right, scaling) - exact) <= allowed)


def test_the_factors_are_left_alone_and_what_was_in_the_room_does_not_matter() -> None:
    left, right = factors(0, 5, 40, 6)
    before = left.tobytes(), right.tobytes()
    assert np.isfinite(delta(left, right, 2.0)).all()
    assert (left.tobytes(), right.tobytes()) == before


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 1), (1, 0), (0, 0)])
def test_an_empty_tile_is_empty(rows: int, columns: int) -> None:
    assert delta(*factors(0, rows, 4, columns)).shape == (rows, columns)


def test_infinite_factors_stay_in_their_rows_and_columns() -> None:
    left, right = factors(0, 6, 40, 7)
    left[2, 35] = np.inf
    with np.errstate(invalid="ignore"):
        found = delta(left, right)
    assert not np.isfinite(found[2]).any()
    assert np.isfinite(np.delete(found, 2, 0)).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(0, 20), st.sampled_from(DTYPES))
@example(0, 0, 3, np.float32)
def test_norms_are_summed_in_float64(seed: int, rows: int, columns: int, dtype: type) -> None:
    matrix = np.random.default_rng(seed).normal(0, 1e3, (rows, columns)).astype(dtype)
    squares = matrix.astype(np.float64) ** 2
    for found, axis in ((row_norms_squared(matrix), 1), (column_norms_squared(matrix), 0)):
        assert found.dtype == np.float64
        assert np.allclose(found, squares.sum(axis), rtol=1e-13, atol=0)


def test_squares_beyond_float32_do_not_overflow() -> None:
    matrix = np.full((2, 3), 1e30, np.float32)
    expected = float(matrix[0, 0]) ** 2
    assert np.allclose(row_norms_squared(matrix), 3 * expected, rtol=1e-12)
    assert np.allclose(column_norms_squared(matrix), 2 * expected, rtol=1e-12)


def test_doras_factor_is_magnitude_over_norm() -> None:
    factor = dora_factor(np.array([2.0, 3.0], np.float32), np.array([16.0, 0.25]))
    assert factor.dtype == np.float64
    assert factor.tolist() == [0.5, 6.0]


def test_a_feature_of_norm_zero_has_no_finite_factor() -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = dora_factor(np.array([2.0, 0.0], np.float32), np.zeros(2))
    assert factor[0] == np.inf
    assert np.isnan(factor[1])
