"""The spectrum of a product of two thin matrices, against that of the product."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.lowrank import (
    effective_rank,
    energy_by_rank,
    inner_products,
    lora_singular_values,
    product_distance,
    product_svd,
)


@pytest.mark.parametrize(("out", "rank", "columns"), [(40, 4, 30), (3, 8, 30), (40, 8, 3), (1, 1, 1)])
@pytest.mark.parametrize("scaling", [1.0, -2.5])
def test_singular_values_are_those_of_the_product(out: int, rank: int, columns: int, scaling: float) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(out, rank)), rng.normal(size=(rank, columns))
    expected = np.linalg.svd(scaling * left @ right, compute_uv=False)[: min(out, rank, columns)]
    np.testing.assert_allclose(lora_singular_values(left, right, scaling), expected, rtol=1e-10)


@pytest.mark.parametrize(("values", "expected"), [([1, 1, 1, 1], 4.0), ([5, 0, 0], 1.0), ([0, 0], 0.0), ([], 0.0)])
def test_effective_rank_of_equal_values_is_their_number(values: list[float], expected: float) -> None:
    assert effective_rank(np.array(values, np.float64)) == pytest.approx(expected)


def test_energy_is_the_share_of_the_sum_of_squares() -> None:
    np.testing.assert_allclose(energy_by_rank(np.array([2.0, 1.0, 0.0])), [0.8, 1.0, 1.0])
    np.testing.assert_array_equal(energy_by_rank(np.zeros(3)), np.ones(3))


def test_a_decomposed_product_is_the_product_with_orthonormal_vectors() -> None:
    generator = np.random.default_rng(5)
    left, right = generator.normal(size=(30, 6)), generator.normal(size=(6, 20))
    u, values, vt = product_svd(left, right)
    np.testing.assert_allclose((u * values) @ vt, left @ right, atol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(vt @ vt.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(values, np.linalg.svd(left @ right, compute_uv=False)[:6], rtol=1e-12)


def test_the_distance_of_products_is_that_of_the_whole_matrices() -> None:
    generator = np.random.default_rng(6)
    first = generator.normal(size=(30, 4)), generator.normal(size=(4, 20))
    other = generator.normal(size=(30, 7)), generator.normal(size=(7, 20))
    expected = np.linalg.norm(first[0] @ first[1] - other[0] @ other[1])
    assert product_distance(*first, *other) == pytest.approx(expected, rel=1e-12)
    assert product_distance(*first, *first) <= 1e-13 * np.linalg.norm(first[0] @ first[1])


def test_inner_products_are_those_of_the_whole_updates() -> None:
    generator = np.random.default_rng(7)
    ranks, scalings = (3, 8, 1), (2.0, -0.5, 1.0)
    lefts = [generator.normal(size=(30, rank)) for rank in ranks]
    rights = [generator.normal(size=(rank, 20)) for rank in ranks]
    updates = [s * left @ right for left, right, s in zip(lefts, rights, scalings, strict=True)]
    expected = [[np.sum(one * other) for other in updates] for one in updates]
    np.testing.assert_allclose(inner_products(lefts, rights, scalings), expected, rtol=1e-10)
