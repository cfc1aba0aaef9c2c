"""The largest singular values in passes over rows, against LAPACK's decomposition of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.leading import leading_singular


def _noisy(rows: int, columns: int, rank: int, seed: int = 0) -> np.ndarray:
    """A matrix of some rank of which most elements were dropped, so that all of its spectrum is occupied."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(rows, rank)) @ generator.normal(size=(rank, columns))
    return (matrix * (generator.random((rows, columns)) < 0.4)).astype(np.float32)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (1500, 1100), (64, 1), (1, 64)])
def test_the_best_approximation_of_a_rank_is_found(shape: tuple[int, int]) -> None:
    matrix = _noisy(*shape, rank=12)
    rank = min(8, *shape)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    found = leading_singular(matrix, rank=rank)
    assert found.converged
    # Nothing of this rank is nearer (Eckart and Young).
    distance = np.linalg.norm(matrix - found.left.astype(np.float64) @ found.right)
    best = np.sqrt(np.sum(values[rank:] ** 2))
    assert distance <= best * (1 + 1e-5) + 1e-5 * values[0]
    np.testing.assert_allclose(found.values, values[:rank], rtol=2e-4)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(rank), atol=1e-5)
    assert found.total == pytest.approx(float(np.sum(values**2)), rel=1e-6)


@pytest.mark.parametrize("shape", [(120, 80), (1300, 1060)])
@pytest.mark.parametrize("energy", [0.3, 0.9])
def test_the_fewest_values_with_an_energy_are_found(shape: tuple[int, int], energy: float) -> None:
    matrix = _noisy(*shape, rank=20)
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    wanted = int(np.searchsorted(np.cumsum(squares), energy * np.sum(squares))) + 1
    found = leading_singular(matrix, rank=None, energy=energy)
    # Subspace iteration may need one more where the share is reached by a hair.
    assert len(found.values) - wanted in ((0,) if shape[1] < 1024 else (0, 1))
    assert float(np.sum(found.values**2)) >= energy * found.total * (1 - 1e-9)


@pytest.mark.parametrize("columns", [40, 1040])
def test_a_matrix_of_zeros_has_values_of_zero(columns: int) -> None:
    found = leading_singular(np.zeros((1100, columns), np.float32), rank=4)
    assert found.total == 0
    np.testing.assert_array_equal(found.values, np.zeros(4))
    np.testing.assert_array_equal(found.left, np.zeros((1100, 4)))


def test_a_rank_beyond_the_matrix_gives_all_of_it() -> None:
    matrix = _noisy(30, 20, rank=20)
    found = leading_singular(matrix, rank=64)
    assert found.values.shape == (20,)
    np.testing.assert_allclose(found.left @ found.right, matrix, atol=1e-4)
