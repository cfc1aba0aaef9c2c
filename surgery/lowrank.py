"""Low-rank algebra on arrays: one formula a function, nothing read or written.

Shapes follow the weight of a linear layer, `(out, in)`: B is `(out, rank)`, A is `(rank, in)`. What is stored the other
way round (Conv1D, embeddings) is transposed by the caller, so that every function sees `left @ right`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = [
    "column_norms_squared",
    "dora_factor",
    "effective_rank",
    "energy_by_rank",
    "inner_products",
    "lora_delta",
    "lora_singular_values",
    "product_distance",
    "product_svd",
    "row_norms_squared",
]


def lora_delta(left: np.ndarray, right: np.ndarray, scaling: float, out: np.ndarray) -> None:
    """`out = scaling * (left @ right)`, the update of Hu et al., arXiv:2106.09685, section 4.1.

    Args:
        left: `(rows, rank)`.
        right: `(rank, columns)`, of the same float type.
        scaling: alpha / rank or what stands for it.
        out: `(rows, columns)`, overwritten.
    """
    np.matmul(left, right, out=out)
    if scaling != 1.0:
        np.multiply(out, out.dtype.type(scaling), out=out)


def row_norms_squared(matrix: np.ndarray) -> np.ndarray:
    """The sum of squares of each row, in float64.

    Args:
        matrix: `(rows, columns)`.

    Returns:
        `(rows,)`.
    """
    return np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)


def column_norms_squared(matrix: np.ndarray) -> np.ndarray:
    """The sum of squares of each column, in float64.

    Args:
        matrix: `(rows, columns)`.

    Returns:
        `(columns,)`.
    """
    return np.einsum("ij,ij->j", matrix, matrix, dtype=np.float64)


def dora_factor(magnitude: np.ndarray, norms_squared: np.ndarray) -> np.ndarray:
    """What DoRA multiplies each output feature of W + delta with: m / ||W + delta||.

    Equation 5 of Liu et al., arXiv:2402.09353.

    Args:
        magnitude: The trained magnitudes m, `(out,)`.
        norms_squared: The sums of squares of the output features of W + delta, `(out,)`.

    Returns:
        `(out,)`, float64; Inf or NaN where a feature of W + delta is all zeros.
    """
    return np.divide(magnitude.astype(np.float64), np.sqrt(norms_squared))


def product_svd(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular value decomposition of left @ right, without the product itself.

    With left = Q R and right^T = P S (Golub and Van Loan, Matrix Computations, 4th edition, section 5.2) the product is
    Q (R S^T) P^T, and as Q and P have orthonormal columns, the small core R S^T has its singular values, and its
    vectors are those of the core behind Q and P.

    Args:
        left: B, `(out, rank)`, finite.
        right: A, `(rank, in)`, finite.

    Returns:
        U `(out, k)`, the singular values `(k,)`, the largest first, and V^T `(k, in)`, float64, with
        k = min(out, in, rank).
    """
    q, upper = np.linalg.qr(left.astype(np.float64))
    p, lower = np.linalg.qr(right.astype(np.float64).T)
    u, values, vt = np.linalg.svd(upper @ lower.T, full_matrices=False)
    return q @ u, values, vt @ p.T


def lora_singular_values(left: np.ndarray, right: np.ndarray, scaling: float = 1.0) -> np.ndarray:
    """The singular values of scaling * left @ right, the largest first, as of `product_svd`.

    Args:
        left: B, `(out, rank)`, finite.
        right: A, `(rank, in)`, finite.
        scaling: What the product is multiplied by.

    Returns:
        `(min(out, in, rank),)`, float64, none below zero.
    """
    upper = np.asarray(np.linalg.qr(left.astype(np.float64), mode="r"))
    lower = np.asarray(np.linalg.qr(right.astype(np.float64).T, mode="r")).T
    core = upper @ lower
    return np.linalg.svd(core, compute_uv=False) * abs(scaling)


def product_distance(left: np.ndarray, right: np.ndarray, other_left: np.ndarray, other_right: np.ndarray) -> float:
    """The Frobenius norm of left @ right - other_left @ other_right, without the products.

    The difference is the product of [left, -other_left] and the two right factors one above the other.

    Args:
        left: `(out, rank)`, finite.
        right: `(rank, in)`, finite.
        other_left: `(out, other rank)`, finite.
        other_right: `(other rank, in)`, finite.
    """
    both = np.concatenate([left.astype(np.float64), -other_left.astype(np.float64)], axis=1)
    values = lora_singular_values(both, np.concatenate([right, other_right], axis=0, dtype=np.float64))
    return float(np.sqrt(np.sum(values**2)))


def inner_products(lefts: Sequence[np.ndarray], rights: Sequence[np.ndarray], scalings: Sequence[float]) -> np.ndarray:
    """The Frobenius inner products of all pairs of updates of one weight, without the updates themselves.

    <B A, D C> = trace((B A)^T D C) = sum of (B^T D) * (A C^T), element by element: products of narrow matrices.

    Args:
        lefts: Of each update B, `(out, rank)`, finite.
        rights: Of each update A, `(rank, in)`, finite.
        scalings: What each B @ A is multiplied with.

    Returns:
        `(updates, updates)`, float64, symmetric.
    """
    starts = np.cumsum([0, *(right.shape[0] for right in rights)])[:-1]
    left = np.concatenate(lefts, axis=1, dtype=np.float64)
    right = np.concatenate(rights, axis=0, dtype=np.float64)
    products = (left.T @ left) * (right @ right.T)
    sums = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
    factors = np.asarray(scalings, np.float64)
    return np.asarray(sums * factors[:, None] * factors)


def effective_rank(singular_values: np.ndarray) -> float:
    """The exponential of the entropy of the singular values' shares of their sum; 0 where all are zero.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.

    Args:
        singular_values: `(count,)`, none below zero.
    """
    total = float(np.sum(singular_values, dtype=np.float64))
    if not total:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    shares = shares[shares > 0]  # a share may underflow
    return float(np.exp(-np.sum(shares * np.log(shares))))


def energy_by_rank(singular_values: np.ndarray) -> np.ndarray:
    """For each rank, the share of the sum of squares that so many of the largest singular values have.

    By Eckart and Young (1936, doi:10.1007/BF02288367) it is what the best approximation of that rank keeps.

    Args:
        singular_values: `(count,)`, the largest first.

    Returns:
        `(count,)`, rising to 1; ones where all are zero.
    """
    largest = float(singular_values[0]) if len(singular_values) else 0.0
    if not largest:
        return np.ones(len(singular_values))
    sums = np.cumsum((singular_values / largest) ** 2)
    return sums / sums[-1]
