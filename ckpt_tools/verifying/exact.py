"""What a weight must be behind its adapters, in float64, and how far an honest merge may be from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckpt_tools.merging.fold_plan import Fold
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.folding import LowRankTerm
from ckpt_tools.tensors.lazy import LazyTensor, Region, bands, full_region, region_shape
from ckpt_tools.tensors.views import reshape
from ckpt_tools.verifying.rounding import smallest, ulp, unit_roundoff

__all__ = ["ExactFold", "Tile"]

_NORM_ROWS = 256
# Of which a dozen arrays of float64 are at work at a time: more than that leaves the cache, and takes twice as long.
_TILE_ELEMENTS = 2**15


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a weight.

    Attributes:
        before: The weight before, float64.
        exact: The weight after, float64.
        bound: How far a merge may be from `exact`, whose own rounding to the output's type is half a unit of it.
    """

    before: np.ndarray
    exact: np.ndarray
    bound: np.ndarray


@dataclass(slots=True)
class ExactFold:
    """A fold, computed in float64 and apart from the kernels of a merge.

    Attributes:
        fold: Which factors belong to the weight.
        dtype: The output's type.
        is_strict: Whether only sums in float32 (float64 for such weights), rounded once, are allowed for.
    """

    fold: Fold
    dtype: DType
    is_strict: bool
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _norms: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def weight(self) -> LazyTensor:
        """The weight before, in the shape in which terms are added."""
        return reshape(self.fold.weight, self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which terms are added."""
        return self.fold.matrix_shape if self.fold.terms else self.fold.weight.shape

    def tiles(self, region: Region) -> Iterator[tuple[Region, Tile]]:
        """A rectangle of whole rows in pieces that stay in a core's cache, and the place of each within it.

        The bound is, with u the unit roundoff of the type that is computed in, W the weight, D the sum of all
        |scaling| * |B row| * |A column| by Euclidean norms, which is at least |scaling| * |B| @ |A|, n the number of
        updates and r the sum of their ranks:

            half a unit of the output at (|exact| + what follows)
            + (r + n + 8) * u * D + u * |W|                 sums in float32, in any order (Higham, section 3.1); twice
                                                            that in float64, in which `exact` is rounded too
            + 4 * u' * D + the same of subnormal numbers     A, B, product and scaling rounded to the coarsest type u'
            + half a unit at |W| where the output is narrower: the base loaded in the output's type first
            + half a unit for each adapter but the first: one merged after the other

        where `is_strict` leaves the last three out.
        """
        weight = self.weight.read(region)
        updates = self._updates(region)
        for place in bands(region_shape(region), _TILE_ELEMENTS):
            before = weight[tuple(slice(*span) for span in place)].astype(np.float64)
            yield place, self._tile(region, place, before, updates)

    def _tile(self, region: Region, place: Region, before: np.ndarray, updates: Sequence[_Update]) -> Tile:
        delta, magnitude = _summed(updates, place)
        exact = before + delta
        inner = BY_NAME["fp64" if self.fold.weight.dtype.name == "fp64" else "fp32"]
        count = len(self.fold.terms) + len(self.fold.vectors)
        rank = sum(term.left.shape[-1] for term in self.fold.terms)
        coarse = self._coarsest()
        size = np.abs(before)
        rounding = (2.0 if inner.name == "fp64" else 1.0) * unit_roundoff(inner)
        of_delta, least = rounding * (rank + 8 + count), smallest(inner)
        if not self.is_strict:
            of_delta += 4 * unit_roundoff(coarse)
            least += smallest(coarse)
        slack = rounding * size
        slack += of_delta * magnitude
        slack += least
        if not self.is_strict:
            if coarse.name == "fp16":  # all others have subnormal numbers that are nothing beside a weight
                slack += smallest(coarse) * _factor_sizes(updates, place)
            if unit_roundoff(self.dtype) > unit_roundoff(self.fold.weight.dtype):
                slack += 0.5 * ulp(size, self.dtype)
            if count > 1:
                slack += 0.5 * (count - 1) * ulp(size + magnitude, self.dtype)
        if self.fold.magnitude is not None:
            start = region[0][0]
            rows = (start + place[0][0], start + place[0][1])
            exact, slack = self._rescaled(rows, exact, size + magnitude, slack, inner, coarse)
        bound = ulp(np.abs(exact) + slack, self.dtype)
        bound *= 0.5
        bound += slack
        return Tile(before, exact, bound)

    def _coarsest(self) -> DType:
        types = [self.fold.weight.dtype, self.dtype, BY_NAME["fp32"]]
        types += [factor.dtype for term in self.fold.terms for factor in (term.left, term.right)]
        types += [term.values.dtype for term in self.fold.vectors]
        return max(types, key=unit_roundoff)

    def _updates(self, region: Region) -> list[_Update]:
        """What is added to a rectangle: read once for all of its tiles."""
        vectors = [_VectorUpdate(one.scaling * one.values.read(region).astype(np.float64)) for one in self.fold.vectors]
        return [*vectors, *(_MatrixUpdate.of(term, region) for term in self.fold.terms)]

    def _rescaled(
        self,
        rows: tuple[int, int],
        summed: np.ndarray,
        size: np.ndarray,
        slack: np.ndarray,
        inner: DType,
        coarse: DType,
    ) -> tuple[np.ndarray, np.ndarray]:
        """DoRA: m / |V| * V, where each of the operations may round, and |V| is one of what was rounded."""
        assert self.fold.magnitude is not None
        values, axis = self.fold.magnitude
        norms, sizes = self._feature_norms()
        trained = values.read_all().reshape(-1).astype(np.float64)
        rank = self.fold.terms[0].left.shape[-1]
        used = inner if self.is_strict else coarse
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = trained / norms
            relative = 4 * unit_roundoff(used) + (rank + 10) * unit_roundoff(inner) * sizes / norms
            if not self.is_strict:
                relative = relative + 5 * unit_roundoff(coarse) * sizes / norms
        if axis == 0:
            factor, relative = factor[slice(*rows), None], relative[slice(*rows), None]
        exact = factor * summed
        slack = np.abs(factor) * (slack + unit_roundoff(used) * size) + relative * np.abs(exact)
        return exact, slack

    def _feature_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """The norms of the output features of V = W + delta, and of what its elements were summed of; read once."""
        assert self.fold.magnitude is not None
        with self._lock:
            if self._norms is None:
                axis = self.fold.magnitude[1]
                rows, columns = self.shape
                norms, sizes = (np.zeros(self.shape[axis]) for _ in range(2))
                for start in range(0, rows, _NORM_ROWS):
                    region = ((start, min(start + _NORM_ROWS, rows)), (0, columns))
                    before = self.weight.read(region).astype(np.float64)
                    delta, magnitude = _summed(self._updates(region), full_region(before.shape))
                    for total, part in ((norms, before + delta), (sizes, np.abs(before) + magnitude)):
                        square = np.square(part)
                        if axis == 0:
                            total[slice(*region[0])] = square.sum(1)
                        else:
                            total += square.sum(0)
                self._norms = np.sqrt(norms), np.sqrt(sizes)
            return self._norms


@dataclass(frozen=True, slots=True)
class _VectorUpdate:
    """What is added to a vector: scaling * values, float64."""

    values: np.ndarray

    def delta(self, place: Region) -> tuple[np.ndarray, np.ndarray]:
        """What is added to a part, and the size of what that is summed of."""
        values = self.values[tuple(slice(*span) for span in place)]
        return values, np.abs(values)

    def factor_sizes(self, place: Region) -> np.ndarray | float:
        """As of `_MatrixUpdate`: a vector has no factors."""
        del place
        return 0.0


@dataclass(frozen=True, slots=True)
class _MatrixUpdate:
    """What is added to whole rows of a matrix, or of a stack of them: scaling * (left @ right).

    Attributes:
        scaling: The factor.
        left: `(..., rows, rank)`, float64.
        right: `(..., rank, columns)`, float64.
        left_norms: `(..., rows, 1)`, the Euclidean norms of left's rows.
        right_norms: `(..., 1, columns)`, those of right's columns.
    """

    scaling: float
    left: np.ndarray
    right: np.ndarray
    left_norms: np.ndarray
    right_norms: np.ndarray

    @classmethod
    def of(cls, term: LowRankTerm, region: Region) -> _MatrixUpdate:
        """Read the factors of a rectangle."""
        *stack, rows, columns = region
        rank = (0, term.left.shape[-1])
        left = term.left.read((*stack, rows, rank)).astype(np.float64)
        right = term.right.read((*stack, rank, columns)).astype(np.float64)
        return cls(term.scaling, left, right, _norm(left, -1), _norm(right, -2))

    def delta(self, place: Region) -> tuple[np.ndarray, np.ndarray]:
        """What is added to a part, and the bound D of what that is summed of."""
        stack, rows = self._cut(place)
        delta = self.left[rows] @ self.right[stack]
        delta *= self.scaling
        return delta, abs(self.scaling) * self.left_norms[rows] * self.right_norms[stack]

    def factor_sizes(self, place: Region) -> np.ndarray | float:
        """How much an absolute error in an element of A or B can do to an element of the result."""
        stack, rows = self._cut(place)
        root = self.left.shape[-1] ** 0.5
        return np.asarray(abs(self.scaling) * (1 + root * (self.left_norms[rows] + self.right_norms[stack])))

    def _cut(self, place: Region) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        *stack, rows, _ = (slice(*span) for span in place)
        return tuple(stack), (*stack, rows)


_Update = _VectorUpdate | _MatrixUpdate


def _summed(updates: Sequence[_Update], place: Region) -> tuple[np.ndarray, np.ndarray]:
    (delta, magnitude), *others = (update.delta(place) for update in updates)
    for more, size in others:
        delta, magnitude = delta + more, magnitude + size
    return delta, magnitude


def _factor_sizes(updates: Sequence[_Update], place: Region) -> np.ndarray | float:
    return sum(update.factor_sizes(place) for update in updates)


def _norm(matrix: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.sqrt(np.sum(np.square(matrix), axis=axis, keepdims=True)))
