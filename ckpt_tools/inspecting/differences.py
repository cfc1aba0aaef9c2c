"""How far two arrays are from each other: sums over stretches, which add up to those of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ckpt_tools.tensors.dtypes import DType

__all__ = ["Difference", "add_up", "difference_of", "has_numbers"]

_NOT_NUMBERS = frozenset({"str", "int4", "hifloat8"})  # numpy knows the bytes of these, not the values


@dataclass(frozen=True, slots=True)
class Difference:
    """Sums over two stretches of one place.

    Attributes:
        differing: Elements whose bits differ; of two types, whose values do.
        nonfinite: How many of them are NaN or Inf in one or both.
        square: Sum of the squares of the first's finite values.
        difference_square: Sum of the squares of the differences, where both are finite.
        largest: The largest absolute difference, where both are finite.
    """

    differing: int = 0
    nonfinite: int = 0
    square: float = 0.0
    difference_square: float = 0.0
    largest: float = 0.0

    @property
    def norm(self) -> float:
        """Frobenius norm of the first's finite values."""
        return math.sqrt(self.square)

    @property
    def difference_norm(self) -> float:
        """Frobenius norm of the difference, where both are finite."""
        return math.sqrt(self.difference_square)


def has_numbers(dtype: DType) -> bool:
    """Whether the elements of a type have values that numpy can compute with."""
    return dtype.name not in _NOT_NUMBERS


def difference_of(first: np.ndarray, other: np.ndarray, *, numbers: bool) -> Difference:
    """Compare two arrays of one shape, of one type or of two.

    Elements with the same bits are equal, NaN as well. Where the types are two, equal values are, and two NaN. In one
    type -0.0 and 0.0 differ, by 0.

    Args:
        first: The first; C-contiguous.
        other: The other; C-contiguous.
        numbers: Whether to compute norms; else elements of one type are compared by their bits alone.
    """
    one_type = first.dtype == other.dtype
    first, other = first.reshape(-1), other.reshape(-1)
    if one_type and first.tobytes() == other.tobytes():
        return Difference(square=_square(_wide(first)) if numbers else 0.0)
    differs = _bits_differ(first, other) if one_type else None
    if not numbers:
        return Difference(differing=_count(differs, first.size))
    left, right = _wide(first), _wide(other)
    if differs is None:
        differs = (left != right) & ~(np.isnan(left) & np.isnan(right))
    finite = np.isfinite(left) & np.isfinite(right)
    chosen = differs & finite
    with np.errstate(over="ignore"):
        distance = np.abs(left[chosen] - right[chosen])
        largest = float(np.max(distance, initial=0.0))
        return Difference(
            int(np.count_nonzero(differs)),
            int(np.count_nonzero(differs & ~finite)),
            _square(left),
            float(np.dot(distance, distance)),
            largest,
        )


def add_up(parts: Iterable[Difference]) -> Difference:
    """The sums of all stretches of a tensor: the same bits, however many threads computed them."""
    parts = list(parts)
    return Difference(
        sum(part.differing for part in parts),
        sum(part.nonfinite for part in parts),
        _sum(part.square for part in parts),
        _sum(part.difference_square for part in parts),
        max((part.largest for part in parts), default=0.0),
    )


def _sum(values: Iterable[float]) -> float:
    values = list(values)
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _count(differs: np.ndarray | None, size: int) -> int:
    return size if differs is None else int(np.count_nonzero(differs))


def _bits_differ(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    rows = [array.view(np.uint8).reshape(first.size, first.itemsize) for array in (first, other)]
    if first.itemsize in (1, 2, 4, 8):
        whole = np.dtype(f"u{first.itemsize}")
        return first.view(whole) != other.view(whole)
    return np.any(rows[0] != rows[1], axis=1)


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _square(values: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.vdot(values, values).real)
        if math.isfinite(total):
            return total
        kept = values[np.isfinite(values)]
        return float(np.vdot(kept, kept).real)
