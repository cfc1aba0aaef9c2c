"""The spectrum of a product of two thin matrices, against that of the product."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.lowrank import effective_rank, energy_by_rank, lora_singular_values


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
