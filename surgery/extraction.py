"""Low-rank extraction: the A and B whose product is nearest to what a full fine-tune changed of a weight.

The nearest matrix of rank r, in the Frobenius norm, is that of the r largest singular values (Eckart and Young, 1936,
doi:10.1007/BF02288367). They are found by a randomised range finder with power iterations (Halko, Martinsson and Tropp,
arXiv:0909.4061, algorithms 4.4 and 5.1), which costs a few products of the matrix with a narrow one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["LowRank", "extract_low_rank", "rounding_edge", "singular_width"]

# Beside the values that are wanted, against a spectrum that is flat where it is cut.
_OVERSAMPLING = 16
_POWER_ITERATIONS = 3
_FIRST_WIDTH = 32

# A decomposition of a matrix this small takes no time.
_SMALL = 512

_EDGE_ROWS = 256
_EDGE_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class LowRank:
    """An approximation `b @ a` of a matrix.

    Attributes:
        a: `(rank, in)`, float32.
        b: `(out, rank)`, float32.
        energy: The share of the matrix' sum of squares that the approximation has, 0 to 1.
        next_singular_value: The largest singular value that was left out, where it is known; else 0.
    """

    a: np.ndarray
    b: np.ndarray
    energy: float
    next_singular_value: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


def extract_low_rank(
    delta: np.ndarray, *, rank: int | None = None, energy: float = 1.0, edge: float = 0.0, seed: int = 0
) -> LowRank:
    """Approximate a matrix by one of low rank.

    Args:
        delta: `(out, in)`, float32, finite, with elements.
        rank: The rank; None for the least that has the energy.
        energy: The share of the sum of squares to keep, where no rank is given; 1 keeps all that is above `edge`.
        edge: Singular values up to this are noise, and never kept, whatever the energy.
        seed: Of the random matrix; the result depends on it in the last digits at most.
    """
    total = float(np.einsum("ij,ij->", delta, delta, dtype=np.float64))
    smaller = min(delta.shape)
    limit = smaller if rank is None else min(rank, smaller)
    width = limit if rank is not None else min(_FIRST_WIDTH, limit)
    while True:
        left, values, right = _singular(delta, width, seed)
        # What the arithmetic in float32 itself errs by.
        floor = float(np.finfo(np.float32).eps * values[0]) * math.sqrt(max(delta.shape))
        kept = min(limit, _needed(values, total, energy, max(edge, floor), rank))
        # What the found values cannot decide needs more of them: as long as the smallest of them would be kept.
        if rank is not None or kept < min(width, len(values)) or len(values) >= smaller:
            break
        width = min(2 * width, smaller)
    roots = np.sqrt(values[:kept])
    a = (right[:kept] * roots[:, None]).astype(np.float32)
    b = (left[:, :kept] * roots[None, :]).astype(np.float32)
    share = float(np.sum(values[:kept].astype(np.float64) ** 2)) / total if total else 1.0
    following = float(values[kept]) if kept < len(values) else 0.0
    return LowRank(np.ascontiguousarray(a), np.ascontiguousarray(b), min(share, 1.0), following)


def rounding_edge(weight: np.ndarray, digits: int) -> float:
    """The largest singular value that rounding alone gives the difference of a weight from another.

    Rounding to a spacing u errs with the variance u^2 / 12. The largest singular value of independent errors is about
    the norm of the row with the largest ones plus that of such a column (Bandeira and van Handel, arXiv:1408.6185).

    Args:
        weight: The weight after, `(out, in)`, float32 or float64, with elements.
        digits: Binary digits of its type, the hidden one among them: 24 of float32, 8 of bfloat16.
    """
    rows: list[float] = []
    columns = np.zeros(weight.shape[1], np.float64)
    for start in range(0, weight.shape[0], _EDGE_ROWS):
        values = weight[start : start + _EDGE_ROWS]
        # 2^(exponent - digits), as numpy's own spacing knows no bfloat16.
        spacing = np.ldexp(np.float64(1), np.frexp(values)[1] - digits)
        spacing[values == 0] = 0
        variances = np.square(spacing, out=spacing) / 12
        rows.append(float(np.max(np.sum(variances, axis=1))))
        columns += np.sum(variances, axis=0)
    return _EDGE_MARGIN * (math.sqrt(max(rows)) + math.sqrt(float(np.max(columns))))


def singular_width(smaller: int, rank: int | None) -> tuple[int, bool]:
    """How many singular vectors are computed at most, and whether it takes a whole decomposition.

    Args:
        smaller: The smaller side of the matrix.
        rank: The rank that is wanted; None for as many as an energy takes.
    """
    sampled = smaller if rank is None else 2 * min(rank, smaller) + _OVERSAMPLING
    is_full = smaller <= _SMALL or 4 * sampled >= smaller
    return (smaller if is_full else sampled), is_full


def _needed(values: np.ndarray, total: float, energy: float, edge: float, rank: int | None) -> int:
    above = int(np.count_nonzero(values > edge))
    if rank is not None:
        return min(rank, above)
    if energy >= 1.0:
        return above
    shares = np.cumsum(values.astype(np.float64) ** 2)
    return min(above, int(np.searchsorted(shares, energy * total)) + 1)


def _singular(delta: np.ndarray, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular values and their vectors: at least `width` of them, if there are as many."""
    sampled, is_full = singular_width(min(delta.shape), width)
    if is_full:
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        return left, values, right
    generator = np.random.Generator(np.random.PCG64(seed))
    basis = _orthonormal(delta @ generator.standard_normal((delta.shape[1], sampled), np.float32))
    for _ in range(_POWER_ITERATIONS):
        basis = _orthonormal(delta @ _orthonormal(delta.T @ basis))
    inner, values, right = np.linalg.svd(basis.T @ delta, full_matrices=False)
    return basis @ inner[:, :width], values[:width], right[:width]


def _orthonormal(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.qr(matrix)[0]
