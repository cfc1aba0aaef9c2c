"""Low-rank algebra on arrays: one formula a function, nothing read or written.

Shapes follow the weight of a linear layer, `(out, in)`: B is `(out, rank)`, A is `(rank, in)`. What is stored the other
way round (Conv1D, embeddings) is transposed by the caller, so that every function sees `left @ right`.
"""

from __future__ import annotations

import numpy as np

__all__ = ["column_norms_squared", "dora_factor", "lora_delta", "row_norms_squared"]


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
    """
    return np.divide(magnitude.astype(np.float64), np.sqrt(norms_squared))
