"""Lazy tensors that fold adapters into weights: float32 inside, rounded once.

    Merged       W + sum of scaling * (left @ right), for matrices and stacks of matrices
    DoraMerged   m / ||W + delta|| * (W + delta), along one axis of a matrix
    Added        W + sum of scaling * term, for vectors such as biases

A slice of one is the same slice of W, of the rows of `left` and of the columns of `right`: it reads little more than
that (see `ckpt_tools.tensors.tiles`), and has the bits of the slice of the whole.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from ckpt_tools.tensors.casts import widen
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Region, Statistics, region_shape
from ckpt_tools.tensors.tiles import TileFactors, finish, fold_matrix, row_spans, whole_columns, whole_rows
from surgery.lowrank import column_norms_squared, dora_factor, row_norms_squared

__all__ = ["Added", "DoraMerged", "Folded", "LowRankTerm", "Merged", "VectorTerm"]

# Rows of a whole weight that are folded at a time where a norm has to be known first: a few megabytes.
_NORM_ROWS = 64


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
    def pieces(self, region: Region, statistics: Statistics | None = None) -> Iterator[np.ndarray]:
        """As of any tensor; the factors are read once for all of them."""

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        out = np.empty(region_shape(region), self.dtype.numpy)
        flat, done = out.reshape(-1), 0
        for piece in self.pieces(region, statistics):
            flat[done : done + piece.size] = piece.reshape(-1)
            done += piece.size
        return out

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

    def pieces(self, region: Region, statistics: Statistics | None = None) -> Iterator[np.ndarray]:
        return _fold(self, self.terms, region, None, statistics)


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

    def pieces(self, region: Region, statistics: Statistics | None = None) -> Iterator[np.ndarray]:
        factor = self.factor()
        factor = np.broadcast_to(factor[:, None] if self.axis == 0 else factor, self.weight.shape)
        return _fold(self, (self.term,), region, factor, statistics)

    def factor(self) -> np.ndarray:
        """What each output feature of W + delta is multiplied with: m / ||W + delta||, in the inner type."""
        return self._once.get(self._factor)

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

    def pieces(self, region: Region, statistics: Statistics | None = None) -> Iterator[np.ndarray]:
        stored = self.weight.read(region)
        delta = np.zeros(stored.shape, self.inner)
        for term in self.terms:
            delta += widen(term.values.read(region)).astype(self.inner) * self.inner.type(term.scaling)
        weight = np.array(widen(stored), self.inner)
        out = np.empty(stored.shape, self.dtype.numpy)
        finish(stored, weight, np.asarray(weight + delta), out, statistics)
        yield out


class _Once:
    """A value computed at the first call, for all threads; a pickled copy starts empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: np.ndarray | None = None

    def get(self, compute: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if self._value is None:
                self._value = compute()
            return self._value

    def __reduce__(self) -> tuple[type[_Once], tuple[()]]:
        return _Once, ()


def _fold(
    tensor: Merged | DoraMerged,
    terms: tuple[LowRankTerm, ...],
    region: Region,
    multiplier: np.ndarray | None,
    statistics: Statistics | None,
) -> Iterator[np.ndarray]:
    """Fold a slice of a matrix or of a stack of matrices, a few tiles at a time.

    Args:
        tensor: What is folded.
        terms: What is added to its weight.
        region: The slice.
        multiplier: DoRA's factor, of the weight's shape, or None.
        statistics: Where to add what is measured.
    """
    if any(start >= stop for start, stop in region):
        return
    weight = tensor.weight
    *stack, rows, columns = region
    for index in np.ndindex(*(stop - start for start, stop in stack)):
        place = tuple((start + i, start + i + 1) for (start, _), i in zip(stack, index, strict=True))
        factors = [_factors(term, place, rows, columns, weight.shape, tensor.inner) for term in terms]
        first_row = whole_rows(rows, weight.shape[-2])[0]
        for span in row_spans(rows, columns[1] - columns[0], weight.dtype.itemsize):
            stored = weight.read((*place, span, columns))
            stored = stored.reshape(stored.shape[-2:])
            out = np.empty(stored.shape, tensor.dtype.numpy)
            above = whole_rows(span, weight.shape[-2])[0] - first_row
            factor = None if multiplier is None else multiplier[slice(*span), slice(*columns)]
            fold_matrix([term.below(above) for term in factors], (span, columns), stored, out, factor, statistics)
            yield out


def _factors(
    term: LowRankTerm,
    place: Region,
    rows: tuple[int, int],
    columns: tuple[int, int],
    shape: tuple[int, ...],
    inner: np.dtype[Any],
) -> TileFactors:
    """A term's factors for all tiles that some rows and columns of one matrix meet."""
    rank = (0, term.left.shape[-1])
    left = _matrix(term.left, (*place, whole_rows(rows, shape[-2]), rank), inner)
    right = _matrix(term.right, (*place, rank, whole_columns(columns, shape[-1])), inner)
    return TileFactors.cut(left, right, term.scaling)


def _matrix(tensor: LazyTensor, region: Region, inner: np.dtype[Any]) -> np.ndarray:
    values = widen(tensor.read(region)).astype(inner, copy=False)
    return values.reshape(values.shape[-2:])
