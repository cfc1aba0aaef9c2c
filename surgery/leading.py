"""The largest singular values of a matrix that is only ever looked at a few rows at a time.

Both ways work on D^T D, which is a sum over rows, added up in float64. Where D has few columns, it is formed and
decomposed as a whole. Where it has many, subspace iteration with Rayleigh-Ritz (Golub and Van Loan, Matrix
Computations, 4th edition, section 8.2.4; with a random start as of Halko, Martinsson and Tropp, arXiv:0909.4061) is run
until what the wanted values add up to stands still. Singular values below 1e-8 of the largest are noise in either.

A matrix that fits into memory may be decomposed by `surgery.extraction`, whose few passes are over all of it: of a flat
spectrum, where iterating takes longest, it keeps a tenth less in a thirtieth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Leading", "leading_singular"]

_FEW_COLUMNS = 1024  # D^T D has 8 MiB and is decomposed in a third of a second
_OVERSAMPLING = 32
_MOST_PASSES = 60
_STANDS_STILL = 1e-7
_TILE_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Leading:
    """The largest singular values of a matrix, and their vectors.

    Attributes:
        left: U times the values, `(rows, count)`, float32.
        right: V^T, `(count, columns)`, float32, orthonormal rows.
        values: `(count,)`, float64, the largest first.
        total: The sum of the squares of all of the matrix' singular values.
        converged: Whether the values stood still; they are lower bounds in any case.
    """

    left: np.ndarray
    right: np.ndarray
    values: np.ndarray
    total: float
    converged: bool


def leading_singular(matrix: np.ndarray, *, rank: int | None, energy: float = 1.0, seed: int = 0) -> Leading:
    """Find the largest singular values and their vectors.

    Args:
        matrix: `(rows, columns)`, float32, finite, usually mapped from a file; better with no more columns than rows.
        rank: How many; None for the fewest whose squares are a share of the sum of squares.
        energy: That share, 0 to 1.
        seed: Of the start where there are many columns.
    """
    columns = matrix.shape[1]
    most = min(matrix.shape)
    if columns <= _FEW_COLUMNS:
        gram = np.zeros((columns, columns))
        for start, stop in _tiles(matrix):
            tile = matrix[start:stop].astype(np.float64)
            gram += tile.T @ tile
        squares, vectors = np.linalg.eigh(gram)
        squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
        total, converged = float(np.trace(gram)), True
        count = _count(squares, total, rank, energy, most)
    else:
        total = sum(float(np.einsum("ij,ij->", part, part, dtype=np.float64)) for part in _parts(matrix))
        width = min(rank or _OVERSAMPLING, most)
        while True:
            squares, vectors, converged = _iterate(matrix, width, seed)
            count = _count(squares[:width], total, rank, energy, most)
            # What was found has less than the energy: more is needed.
            if rank is not None or width == most or _share(squares[:width], total) >= energy:
                break
            width = min(2 * width, most)
    values, chosen = np.sqrt(squares[:count]), vectors[:, :count]
    left = np.empty((matrix.shape[0], count), np.float32)
    for start, stop in _tiles(matrix):
        left[start:stop] = matrix[start:stop].astype(np.float64) @ chosen
    right = np.ascontiguousarray(chosen.T, np.float32)
    return Leading(left, right, values, total, converged)


def _iterate(matrix: np.ndarray, wanted: int, seed: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Squares of the largest singular values and their right vectors: `wanted` of them and some that are less sure."""
    columns = matrix.shape[1]
    width = min(2 * wanted + _OVERSAMPLING, columns)
    generator = np.random.Generator(np.random.PCG64(seed))
    basis = np.linalg.qr(generator.standard_normal((columns, width)))[0]
    before = -1.0
    for _ in range(_MOST_PASSES):
        narrow = basis.astype(np.float32)
        image = np.zeros((columns, width))
        for part in _parts(matrix):
            image += part.T @ (part @ narrow)
        inner = basis.T @ image
        squares, turn = np.linalg.eigh((inner + inner.T) / 2)
        squares, vectors = np.maximum(squares[::-1], 0.0), basis @ turn[:, ::-1]
        found = float(np.sum(squares[:wanted]))
        if found - before <= _STANDS_STILL * found:
            return squares, vectors, True
        before = found
        basis = np.linalg.qr(image)[0]
    return squares, vectors, False


def _count(squares: np.ndarray, total: float, rank: int | None, energy: float, most: int) -> int:
    if rank is not None:
        return min(rank, most, len(squares))
    reached = np.cumsum(squares[:most]) >= energy * total * (1 - 1e-12)
    return int(np.argmax(reached)) + 1 if reached.any() else min(most, len(squares))


def _share(squares: np.ndarray, total: float) -> float:
    return float(np.sum(squares)) / total if total else 1.0


def _tiles(matrix: np.ndarray) -> list[tuple[int, int]]:
    rows = max(_TILE_BYTES // (matrix.shape[1] * 4), 1)
    return [(start, min(start + rows, matrix.shape[0])) for start in range(0, matrix.shape[0], rows)]


def _parts(matrix: np.ndarray) -> list[np.ndarray]:
    return [matrix[start:stop] for start, stop in _tiles(matrix)]
