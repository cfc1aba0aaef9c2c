"""Lazy tensors that fold adapters into weights: float32 inside, rounded once.

    Merged       W + sum of scaling * (left @ right), for matrices and stacks of matrices
    DoraMerged   m / ||W + delta|| * (W + delta), along one axis of a matrix
    Added        W + sum of scaling * term, for vectors such as biases

A slice of one is the same slice of W, of the rows of `left` and of the columns of `right`: it reads no more than that.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from ckpt_tools.casts import count_nonfinite, narrow, widen
from ckpt_tools.dtypes import BY_NAME, DType
from ckpt_tools.lazy import ByteRun, LazyTensor, Region, Statistics, full_region
from surgery.lowrank import column_norms_squared, dora_factor, lora_delta, row_norms_squared

__all__ = ["Added", "DoraMerged", "Folded", "LowRankTerm", "Merged", "VectorTerm"]

# A tile stays in a core's second-level cache: three float32 arrays of 32 rows and 2,048 columns are 768 kB.
_TILE_ROWS = 32
_TILE_COLUMNS = 2048

# Rows of a whole weight that are folded at a time where a norm has to be known first.
_NORM_ROWS = 512


@final
@dataclass(frozen=True, slots=True)
class LowRankTerm:
    """One adapter's update of one weight: scaling * (left @ right).

    Attributes:
        left: `(..., rows, rank)`.
        right: `(..., rank, columns)`.
        scaling: The factor in front.
    """

    left: LazyTensor
    right: LazyTensor
    scaling: float


@final
@dataclass(frozen=True, slots=True)
class VectorTerm:
    """One adapter's update of one vector: scaling * values, of the vector's shape."""

    values: LazyTensor
    scaling: float


class Folded(LazyTensor):
    """A weight with adapters folded in.

    Attributes:
        weight: The weight before.
    """

    weight: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the weight
        return self.weight.shape

    @property
    def inner_dtype(self) -> DType:
        """The type that is computed in: float32, or float64 where the weight is float64."""
        return BY_NAME["fp64" if self.weight.dtype.name == "fp64" else "fp32"]

    @property
    def inner(self) -> np.dtype[Any]:
        """`inner_dtype` as a numpy type."""
        return self.inner_dtype.numpy

    @abstractmethod
    def with_dtype(self, dtype: DType) -> Folded:
        """The same fold, rounded to another type instead: still one rounding."""

    @abstractmethod
    def parts(self) -> Iterator[LazyTensor]:
        """All tensors that are read."""

    def sources(self) -> Iterator[ByteRun]:
        for part in self.parts():
            yield from part.sources()


@final
@dataclass(frozen=True, slots=True)
class Merged(Folded):
    """W + sum of scaling * (left @ right).

    Attributes:
        weight: `(rows, columns)`, or a stack of such matrices `(experts, rows, columns)`.
        terms: What is added; factors have as many axes as the weight.
        dtype: The type of the result.
    """

    weight: LazyTensor
    terms: tuple[LowRankTerm, ...]
    dtype: DType

    def with_dtype(self, dtype: DType) -> Merged:
        return Merged(self.weight, self.terms, dtype)

    def parts(self) -> Iterator[LazyTensor]:
        yield self.weight
        for term in self.terms:
            yield from (term.left, term.right)

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        stored = self.weight.read(region)
        out = stored if stored.dtype == self.dtype.numpy else np.empty(stored.shape, self.dtype.numpy)
        for term_factors, before, after in _matrices(self.terms, region, stored, out, self.inner):
            _fold_matrix(term_factors, before, after, None, statistics)
        return out


@final
@dataclass(frozen=True, eq=False)
class DoraMerged(Folded):
    """m / ||W + delta|| * (W + delta): weight-decomposed LoRA (Liu et al., arXiv:2402.09353).

    The norms need whole output features; they are computed once, from the whole weight, when the first slice is read.

    Attributes:
        weight: `(rows, columns)`.
        term: The low-rank update.
        magnitude: The trained magnitudes, one for each output feature.
        axis: Which axis of the weight counts the output features: 0 for `(out, in)`, 1 for Conv1D's `(in, out)`.
        dtype: The type of the result.
    """

    weight: LazyTensor
    term: LowRankTerm
    magnitude: LazyTensor
    axis: int
    dtype: DType
    _once: _Once = field(default_factory=lambda: _Once(), repr=False)

    def with_dtype(self, dtype: DType) -> DoraMerged:
        return DoraMerged(self.weight, self.term, self.magnitude, self.axis, dtype)

    def parts(self) -> Iterator[LazyTensor]:
        yield from (self.weight, self.term.left, self.term.right, self.magnitude)

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        factor = self._once.get(self._factor)[slice(*region[self.axis])]
        stored = self.weight.read(region)
        factor = np.broadcast_to(factor[:, None] if self.axis == 0 else factor, stored.shape)
        out = stored if stored.dtype == self.dtype.numpy else np.empty(stored.shape, self.dtype.numpy)
        for term_factors, before, after in _matrices((self.term,), region, stored, out, self.inner):
            _fold_matrix(term_factors, before, after, factor, statistics)
        return out

    def _factor(self) -> np.ndarray:
        rows, columns = self.weight.shape
        plain = Merged(self.weight, (self.term,), self.inner_dtype)
        sums = np.zeros(self.weight.shape[self.axis], np.float64)
        for start in range(0, rows, _NORM_ROWS):
            stop = min(start + _NORM_ROWS, rows)
            values = plain.read(((start, stop), (0, columns)))
            if self.axis == 0:
                sums[start:stop] = row_norms_squared(values)
            else:
                sums += column_norms_squared(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return dora_factor(widen(self.magnitude.read_all()).reshape(-1), sums).astype(self.inner)


@final
@dataclass(frozen=True, slots=True)
class Added(Folded):
    """W + sum of scaling * term, element by element.

    Attributes:
        weight: Of any shape, usually a bias `(out,)`.
        terms: What is added, each of the weight's shape.
        dtype: The type of the result.
    """

    weight: LazyTensor
    terms: tuple[VectorTerm, ...]
    dtype: DType

    def with_dtype(self, dtype: DType) -> Added:
        return Added(self.weight, self.terms, dtype)

    def parts(self) -> Iterator[LazyTensor]:
        yield self.weight
        for term in self.terms:
            yield term.values

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        stored = self.weight.read(region)
        delta = np.zeros(stored.shape, self.inner)
        for term in self.terms:
            delta += widen(term.values.read(region)).astype(self.inner) * self.inner.type(term.scaling)
        weight = np.array(widen(stored), self.inner)
        out = np.empty(stored.shape, self.dtype.numpy)
        _finish(stored, weight, weight + delta, out, statistics)
        return out


class _Once:
    """A value computed at the first call, for all threads; a pickled copy starts empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: np.ndarray | None = None

    def get(self, compute: Any) -> np.ndarray:
        with self._lock:
            if self._value is None:
                self._value = compute()
            return self._value

    def __reduce__(self) -> tuple[type[_Once], tuple[()]]:
        return _Once, ()


_Factors = list[tuple[np.ndarray, np.ndarray, float]]


def _matrices(
    terms: tuple[LowRankTerm, ...], region: Region, stored: np.ndarray, out: np.ndarray, inner: np.dtype[Any]
) -> Iterator[tuple[_Factors, np.ndarray, np.ndarray]]:
    """The factors, the weight before and the room for the result, for each matrix that a region cuts."""
    *stack, rows, columns = region
    for index in np.ndindex(*(stop - start for start, stop in stack)):
        place = tuple((start + i, start + i + 1) for (start, _), i in zip(stack, index, strict=True))
        factors = [
            (_factor(t.left, place, rows, 0, inner), _factor(t.right, place, columns, 1, inner), t.scaling)
            for t in terms
        ]
        yield factors, stored[index], out[index]


def _factor(tensor: LazyTensor, place: Region, span: tuple[int, int], axis: int, inner: np.dtype[Any]) -> np.ndarray:
    whole = full_region(tensor.shape[-2:])
    region = (*place, span, whole[1]) if axis == 0 else (*place, whole[0], span)
    values = widen(tensor.read(region)).astype(inner, copy=False)
    return values.reshape(values.shape[-2:])


def _fold_matrix(
    factors: _Factors, stored: np.ndarray, out: np.ndarray, multiplier: np.ndarray | None, statistics: Statistics | None
) -> None:
    """Fold one matrix, tile by tile. `out` may be `stored` itself.

    Args:
        factors: (left, right, scaling) of each term.
        stored: The weight before, `(rows, columns)`, of the type it is stored in.
        out: The result, of the type it is to be stored in.
        multiplier: DoRA's factor, `(rows, columns)`, or None.
        statistics: Where to add what is measured.
    """
    inner = factors[0][0].dtype
    rows, columns = stored.shape
    weight, delta, more = (np.empty(_TILE_ROWS * _TILE_COLUMNS, inner) for _ in range(3))
    for top in range(0, rows, _TILE_ROWS):
        for left_edge in range(0, columns, _TILE_COLUMNS):
            tile = slice(top, min(top + _TILE_ROWS, rows)), slice(left_edge, min(left_edge + _TILE_COLUMNS, columns))
            before = stored[tile]
            shape, size = before.shape, before.size
            w, d, m = (scratch[:size].reshape(shape) for scratch in (weight, delta, more))
            widen(before, w)
            left, right, scaling = factors[0]
            lora_delta(left[tile[0]], right[:, tile[1]], scaling, d)
            for left, right, scaling in factors[1:]:
                lora_delta(left[tile[0]], right[:, tile[1]], scaling, m)
                np.add(d, m, out=d)
            np.add(w, d, out=m)
            if multiplier is not None:
                np.multiply(m, multiplier[tile], out=m)
                np.subtract(m, w, out=d)
            _finish(before, w, m, out[tile], statistics, d)


def _finish(
    stored: np.ndarray,
    weight: np.ndarray,
    merged: np.ndarray,
    out: np.ndarray,
    statistics: Statistics | None,
    delta: np.ndarray | None = None,
) -> None:
    """Round to the output's type, and measure. `out` may be `stored` itself."""
    if statistics is None:
        narrow(merged, out)
        return
    result = np.empty(merged.shape, out.dtype)
    narrow(merged, result)
    before = stored
    if stored.dtype != out.dtype:
        before = np.empty(merged.shape, out.dtype)
        narrow(weight, before)
    bits = np.dtype(f"u{out.dtype.itemsize}")
    if delta is None:
        delta = merged - weight
    with np.errstate(over="ignore", invalid="ignore"):
        weight_square, delta_square = _square(weight), _square(delta)
    statistics.elements += merged.size
    statistics.weight_square += weight_square
    statistics.delta_square += delta_square
    statistics.unchanged += int(np.count_nonzero(before.view(bits) == result.view(bits)))
    if not np.isfinite(weight_square):
        statistics.nonfinite_input += count_nonfinite(weight)
    statistics.nonfinite_output += count_nonfinite(result)
    out[...] = result


def _square(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    total = float(np.dot(flat, flat))
    # Squares of float32 numbers beyond 1e19 overflow where the numbers themselves do not.
    return total if np.isfinite(total) else float(np.square(flat, dtype=np.float64).sum())
