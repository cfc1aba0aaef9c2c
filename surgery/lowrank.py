"""Low-rank algebra on arrays: one formula a function, nothing read or written.

Shapes follow the weight of a linear layer, `(out, in)`: B is `(out, rank)`, A is `(rank, in)`. What is stored the other
way round (Conv1D, embeddings) is transposed by the caller, so that every function sees `left @ right`.
"""

from __future__ import annotations

import numpy as np

__all__ = ["column_norms_squared", "dora_factor", "lora_delta", "row_norms_squared"]

# BLAS kernels may add up a long inner dimension differently in a small tile than in a large one. Up to this length
# every element's sum is taken in the same order wherever the tile begins and ends, so that a slice of a merged weight
# has the same bits as the merged slice; `tests/surgery/test_lowrank.py` holds it on the BLAS that is installed.
_INNER = 32


def lora_delta(left: np.ndarray, right: np.ndarray, scaling: float, out: np.ndarray) -> None:
    """`out = scaling * (left @ right)`, the update of Hu et al., arXiv:2106.09685, section 4.1.

    The bits of an element depend on its row of `left` and its column of `right` alone, not on the tile.

    Args:
        left: `(rows, rank)`.
        right: `(rank, columns)`, of the same float type.
        scaling: alpha / rank or what stands for it.
        out: `(rows, columns)`, overwritten.
    """
    rows, rank = left.shape
    columns = right.shape[1]
    if rows == 1 or columns == 1:
        # One row or column would be a matrix-vector product, which sums in another order.
        wide = np.empty((max(rows, 2), max(columns, 2)), out.dtype)
        lora_delta(_doubled(left, 0), _doubled(right, 1), scaling, wide)
        out[...] = wide[:rows, :columns]
        return
    np.matmul(left[:, :_INNER], right[:_INNER], out=out)
    for start in range(_INNER, rank, _INNER):
        out += left[:, start : start + _INNER] @ right[start : start + _INNER]
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


def _doubled(factor: np.ndarray, axis: int) -> np.ndarray:
    return np.repeat(factor, 2, axis) if factor.shape[axis] == 1 else factor
