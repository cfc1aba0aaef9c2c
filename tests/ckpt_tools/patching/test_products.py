"""Products whose bits depend on nothing but the factors."""

from __future__ import annotations

import numpy as np
import pytest
from merge_cases import random

from ckpt_tools.patching.products import ExactProduct


@pytest.mark.parametrize("rank", [1, 3, 8, 64, 100])
def test_no_order_of_summation_changes_a_bit(rank: int) -> None:
    left, right = random(0, 70, rank), random(1, rank, 130) * np.float32(1e3)
    product = ExactProduct.of(left, right)
    whole = product.rows(0, 70)
    order = np.random.default_rng(2).permutation(rank)
    one_by_one = np.zeros_like(whole)
    for place in order:
        one_by_one += product.left[:, place : place + 1] * product.right[place]
    assert one_by_one.tobytes() == whole.tobytes()
    assert product.rows(5, 9).tobytes() == whole[5:9].tobytes()


def test_sums_of_python_integers_say_the_same() -> None:
    left, right = random(3, 5, 7), random(4, 7, 6)
    product = ExactProduct.of(left, right)
    unit = 2.0**40
    exact = (product.left * unit).astype(object) @ (product.right * unit).astype(object)
    assert product.rows(0, 5).tolist() == (exact / 2**80).astype(float).tolist()


def test_rounding_the_factors_costs_no_more_than_float32() -> None:
    left, right = random(5, 64, 16), random(6, 16, 64)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    size = np.abs(left).max(axis=1)[:, None] * np.abs(right).max(axis=0)
    assert np.all(np.abs(ExactProduct.of(left, right).rows(0, 64) - exact) <= 16 * 2.0**-23 * size)


def test_what_is_not_finite_counts_as_zero() -> None:
    left, right = random(7, 4, 2), random(8, 2, 4)
    left[0, 0], right[1, 1] = np.nan, np.inf
    rows = ExactProduct.of(left, right).rows(0, 4)
    assert np.isfinite(rows).all()
