"""Low-rank extraction beside a singular value decomposition in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from surgery.extraction import extract_low_rank, rounding_edge


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decaying(rows: int, columns: int, rate: float) -> np.ndarray:
    """A matrix whose singular values decay by a rate."""
    count = min(rows, columns)
    left, right = np.linalg.qr(noise(1, rows, count))[0], np.linalg.qr(noise(2, columns, count))[0]
    return ((left * rate ** np.arange(count)) @ right.T).astype(np.float32)


MATRICES = {
    "wide": decaying(300, 500, 0.9),
    "tall": decaying(500, 300, 0.97),
    "small": decaying(20, 30, 0.8),
    "flat": noise(3, 200, 260),
    "one column": noise(4, 40, 2),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_rank_keeps_as_much_as_the_best_of_that_rank(name: str, rank: int) -> None:
    matrix = MATRICES[name]
    found = extract_low_rank(matrix, rank=rank)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    best = float(np.sum(values[:rank] ** 2) / np.sum(values**2))
    assert found.rank == min(rank, *matrix.shape)
    assert (found.a.shape, found.b.shape) == ((found.rank, matrix.shape[1]), (matrix.shape[0], found.rank))
    assert found.energy == pytest.approx(best, rel=0.05 if name == "flat" else 2e-3)
    assert found.energy <= best * (1 + 1e-5)
    rest = matrix.astype(np.float64) - found.b.astype(np.float64) @ found.a.astype(np.float64)
    assert 1 - np.sum(rest**2) / np.sum(matrix.astype(np.float64) ** 2) == pytest.approx(found.energy, abs=1e-4)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_an_energy_takes_the_least_rank_that_has_it(name: str, energy: float) -> None:
    matrix = MATRICES[name]
    found = extract_low_rank(matrix, energy=energy)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    shares = np.cumsum(values**2) / np.sum(values**2)
    least = int(np.searchsorted(shares, energy)) + 1
    # Singular vectors that were found approximately may need one more.
    assert least <= found.rank <= least + 1 + least // 20
    assert found.energy >= energy * (1 - 1e-5)


@pytest.mark.parametrize("rank", [1, 3, 16, 60])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_rank_of_a_true_lora_is_found_under_the_rounding_of_its_weight(rank: int, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    weight = (0.02 * noise(0, 640, 700)).astype(kind)
    change = 0.01 * noise(1, 640, rank) @ noise(2, rank, 700)
    tuned = (weight.astype(np.float32) + change).astype(kind)
    delta = tuned.astype(np.float32) - weight.astype(np.float32)
    digits = {"float32": 24, "bfloat16": 8, "float16": 11}[dtype]
    found = extract_low_rank(delta, energy=1.0, edge=rounding_edge(tuned.astype(np.float32), digits))
    assert found.rank == rank
    if dtype == "float32":
        merged = weight + found.b @ found.a
        # A and B have float32's precision each, and so has what they change.
        assert np.linalg.norm(merged - tuned) <= 4 * np.finfo(np.float32).eps * np.linalg.norm(delta)


def test_what_is_rounding_alone_has_no_rank() -> None:
    weight = 0.02 * noise(0, 200, 300)
    tuned = weight.astype(np.float16).astype(np.float32)
    assert extract_low_rank(tuned - weight, energy=1.0, edge=rounding_edge(tuned, 11)).rank == 0


def test_nothing_has_no_rank_and_all_of_its_energy() -> None:
    found = extract_low_rank(np.zeros((4, 5), np.float32), energy=0.9)
    assert (found.rank, found.energy) == (0, 1.0)


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = (extract_low_rank(MATRICES["wide"], rank=8, seed=3) for _ in range(2))
    assert first.a.tobytes() == second.a.tobytes()
    assert first.b.tobytes() == second.b.tobytes()
