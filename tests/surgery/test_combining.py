"""Formulas of combining adapters, against their definitions; PEFT's own are compared with in tests/conformance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckpt_tools.cli.combination import METHOD_NAMES
from surgery.combining import (
    METHODS,
    disjoint_mean,
    drop_and_rescale,
    elect_signs,
    magnitude_cut,
    split_factor,
    task_arithmetic,
    trim,
)
from surgery.draws import uniform_draws

# Few different magnitudes, so that many are equal.
VALUES = arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """What is kept by definition: a stable sort, the largest magnitudes first."""
    kept = np.zeros(values.size, bool)
    kept[np.argsort(-np.abs(values), kind="stable")[:count]] = True
    return np.where(kept, values, 0)


@given(VALUES, st.floats(0, 1), st.integers(1, 60))
def test_the_largest_are_kept_and_the_first_of_equal_ones_however_the_tensor_is_cut(
    values: np.ndarray, density: float, piece: int
) -> None:
    count = int(density * values.size)
    pieces = [values[start : start + piece] for start in range(0, values.size, piece)]
    cut = magnitude_cut(lambda: iter(pieces), count)
    starts = range(0, values.size, piece)
    found = np.concatenate([trim(tile, cut, start) for tile, start in zip(pieces, starts, strict=True)])
    np.testing.assert_array_equal(found, _largest(values, count))


@pytest.mark.parametrize("count", [0, 1, 777, 4095, 4096])
def test_just_so_many_random_values_are_kept(count: int) -> None:
    values = np.random.default_rng(3).normal(0, 1e-3, (64, 64)).astype(np.float32)
    found = trim(values, magnitude_cut(lambda: (values,), count))
    assert found.shape == values.shape
    np.testing.assert_array_equal(found.reshape(-1), _largest(values.reshape(-1), count))
    assert np.count_nonzero(found) == count


def test_what_is_dropped_at_random_is_rescaled_so_that_the_mean_stays() -> None:
    values = np.full((400, 500), 3.0, np.float32)
    found = drop_and_rescale(values, uniform_draws(1, "layer", 0, values.size), 0.25)
    assert set(np.unique(found)) == {0.0, 12.0}
    # 200,000 draws: five standard deviations of the share are 0.0048.
    assert abs(np.count_nonzero(found) / found.size - 0.25) < 0.005
    assert abs(float(found.mean()) - 3.0) < 0.06


@given(st.integers(0, 200), st.integers(1, 100), st.integers(0, 2**40))
def test_draws_do_not_depend_on_where_one_begins(start: int, count: int, offset: int) -> None:
    whole = uniform_draws(7, "x", offset, start + count)
    np.testing.assert_array_equal(uniform_draws(7, "x", offset + start, count), whole[start:])


def test_draws_of_other_seeds_and_names_are_others() -> None:
    first = uniform_draws(0, "a", 0, 1000)
    for other in (uniform_draws(1, "a", 0, 1000), uniform_draws(0, "b", 0, 1000)):
        assert abs(float(np.corrcoef(first, other)[0, 1])) < 0.15
        assert not np.array_equal(first, other)


def test_signs_are_elected_by_the_sum_or_by_the_count() -> None:
    tasks = np.array([[5.0, 1.0, 0.0, 2.0], [-1.0, 1.0, 0.0, -2.0], [-1.0, -3.0, 1.0, 0.0]], np.float32)
    by_sum = elect_signs(tasks, "total")
    # Sums 3, -1, 1, 0: the last counts as positive; zeros agree with nobody.
    np.testing.assert_array_equal(
        by_sum, [[True, False, False, True], [False, False, False, False], [False, True, True, False]]
    )
    by_count = elect_signs(tasks, "frequency")
    np.testing.assert_array_equal(
        by_count, [[False, True, False, True], [True, True, False, False], [True, False, True, False]]
    )


def test_the_disjoint_mean_divides_by_those_that_agree() -> None:
    tasks = np.array([[4.0, 2.0, 0.0], [2.0, -2.0, 0.0]], np.float32)
    agree = np.array([[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(disjoint_mean(tasks, [1.0, 0.5], agree), [2.5, 2.0, 0.0])


def test_task_arithmetic_is_the_weighted_sum() -> None:
    tasks = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], np.float32)
    np.testing.assert_array_equal(task_arithmetic(tasks, [1.0, -2.0, 0.5]), [31.0, 62.0])


@pytest.mark.parametrize("factor", [2.25, -0.49, 1e-12])
def test_the_parts_of_a_factor_multiply_to_it_and_a_takes_the_sign(factor: float) -> None:
    of_a, of_b = split_factor(factor)
    assert of_b > 0
    assert of_a * of_b == pytest.approx(factor, rel=1e-15)


def test_the_command_line_offers_every_method() -> None:
    assert tuple(METHODS) == tuple(sorted(METHOD_NAMES, key=list(METHODS).index))
    assert set(METHOD_NAMES) == set(METHODS)
