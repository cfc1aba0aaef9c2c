"""B @ A with the same bits on every machine, at the speed of its BLAS.

A BLAS adds up the products of an element in an order of its own, with or without fused multiply-adds, and rounds
after each. So factors are first rounded to so few bits that there is nothing left to round: each row of B and each
column of A to whole multiples of a power of two, of at most `b` bits, where 2b + log2(rank) is not more than float64's
53. Every product and every sum of them then is a float64, in whatever order. That is one slice of the scheme of Ozaki,
Ogita, Oishi and Rump ("Error-free transformations of matrix multiplication by using fast routines", 2012); what it cuts
off of the factors is about what float32 would have cut off of the products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ExactProduct"]

_FLOAT64_BITS = 53


@dataclass(frozen=True, slots=True)
class ExactProduct:
    """The product of two factors, whose bits depend on nothing but them.

    Attributes:
        left: `(rows, rank)`, float64.
        right: `(rank, columns)`, float64.
        is_rounded: Whether the factors are of so few bits that no product of them is rounded; else products are
            computed and added one rank after the other, which is slow.
    """

    left: np.ndarray
    right: np.ndarray
    is_rounded: bool

    @classmethod
    def of(cls, left: np.ndarray, right: np.ndarray) -> ExactProduct:
        """Round factors, or take float64 ones as they are.

        Args:
            left: `(rows, rank)`, float32; or float64, where a product is wanted that is as fine as that.
            right: `(rank, columns)`, of the same type. What is not finite in either counts as 0.
        """
        left, right = (np.where(np.isfinite(factor), factor, 0) for factor in (left, right))
        if left.dtype == np.float64:
            return cls(left, right, is_rounded=False)
        bits = (_FLOAT64_BITS - max(left.shape[1] - 1, 0).bit_length()) // 2
        return cls(_rounded(left, 1, bits), _rounded(right, 0, bits), is_rounded=True)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the product: `(stop - start, columns)`, float64."""
        left = self.left[start:stop]
        if self.is_rounded:
            return left @ self.right
        total = np.zeros((len(left), self.right.shape[1]))
        product = np.empty_like(total)
        for rank in range(left.shape[1]):
            np.multiply(left[:, rank : rank + 1], self.right[rank], out=product)
            np.add(total, product, out=total)
        return total


def _rounded(factor: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """A float32 factor as float64, rounded along an axis to multiples of one power of two, of some bits."""
    values = factor.astype(np.float64)
    _, exponent = np.frexp(np.abs(values).max(axis=axis, keepdims=True, initial=0.0))
    unit = np.ldexp(1.0, exponent - bits)
    return np.rint(values / unit) * unit
