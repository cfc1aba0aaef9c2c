"""What a weight must be behind its adapters, in float64, and how far an honest merge may be from it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from ckpt_tools.merging.fold_plan import Fold
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.folding import LowRankTerm
from ckpt_tools.tensors.lazy import LazyTensor, Region
from ckpt_tools.tensors.views import reshape
from ckpt_tools.verifying.rounding import smallest, ulp, unit_roundoff

__all__ = ["ExactFold", "Tile"]

_NORM_ROWS = 256


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

    def tile(self, region: Region) -> Tile:
        """A rectangle of whole rows.

        The bound is, with u the unit roundoff of the type that is computed in, W the weight, D the sum of all
        |scaling| * |B row| * |A column| by Euclidean norms, which is at least |scaling| * |B| @ |A|, and r the sum of
        ranks:

            half a unit of the output at (|exact| + what follows)
            + (r + 8) * u * D + u * |W|                     sums in float32, in any order (Higham, section 3.1)
            + 4 * u' * D + the same of subnormal numbers     A, B, product and scaling rounded to the coarsest type u'
            + half a unit at |W| where the output is narrower: the base loaded in the output's type first
            + half a unit for each adapter but the first: one merged after the other

        where `is_strict` leaves the last three out.
        """
        before = self.weight.read(region).astype(np.float64)
        delta, magnitude = self._delta(region, before.shape)
        exact = before + delta
        inner = BY_NAME["fp64" if self.fold.weight.dtype.name == "fp64" else "fp32"]
        count = len(self.fold.terms) + len(self.fold.vectors)
        rank = sum(term.left.shape[-1] for term in self.fold.terms)
        u, coarse = unit_roundoff(inner), self._coarsest()
        size = np.abs(before)
        slack = (2.0 if inner.name == "fp64" else 1.0) * u * (size + (rank + 8 + count) * magnitude) + smallest(inner)
        if not self.is_strict:
            slack += 4 * unit_roundoff(coarse) * magnitude
            slack += smallest(coarse) * (1 + self._factor_sizes(region, before.shape))
            if unit_roundoff(self.dtype) > unit_roundoff(self.fold.weight.dtype):
                slack += 0.5 * ulp(size, self.dtype)
            if count > 1:
                slack += 0.5 * (count - 1) * ulp(size + magnitude, self.dtype)
        if self.fold.magnitude is not None:
            exact, slack = self._rescaled(region, exact, size + magnitude, slack, inner, coarse)
        bound = 0.5 * ulp(np.abs(exact) + slack, self.dtype) + slack
        return Tile(before, exact, bound)

    def _coarsest(self) -> DType:
        types = [self.fold.weight.dtype, self.dtype, BY_NAME["fp32"]]
        types += [factor.dtype for term in self.fold.terms for factor in (term.left, term.right)]
        types += [term.values.dtype for term in self.fold.vectors]
        return max(types, key=unit_roundoff)

    def _delta(self, region: Region, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        delta, magnitude = np.zeros(shape), np.zeros(shape)
        for vector in self.fold.vectors:
            values = vector.scaling * vector.values.read(region).astype(np.float64)
            delta += values
            magnitude += np.abs(values)
        for term in self.fold.terms:
            left, right = _factors(term, region)
            delta += term.scaling * (left @ right)
            magnitude += abs(term.scaling) * _norm(left, -1) * _norm(right, -2)
        return delta, magnitude

    def _factor_sizes(self, region: Region, shape: tuple[int, ...]) -> np.ndarray:
        """How much an absolute error in an element of A or B can do to an element of the result."""
        sizes = np.zeros(shape)
        if self._coarsest().name == "fp16":  # all others have subnormal numbers that are nothing beside a weight
            for term in self.fold.terms:
                left, right = _factors(term, region)
                root = left.shape[-1] ** 0.5
                sizes += abs(term.scaling) * (1 + root * (_norm(left, -1) + _norm(right, -2)))
        return sizes

    def _rescaled(
        self,
        region: Region,
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
            rows = slice(*region[0])
            factor, relative = factor[rows, None], relative[rows, None]
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
                    delta, magnitude = self._delta(region, before.shape)
                    for total, part in ((norms, before + delta), (sizes, np.abs(before) + magnitude)):
                        square = np.square(part)
                        if axis == 0:
                            total[slice(*region[0])] = square.sum(1)
                        else:
                            total += square.sum(0)
                self._norms = np.sqrt(norms), np.sqrt(sizes)
            return self._norms


def _factors(term: LowRankTerm, region: Region) -> tuple[np.ndarray, np.ndarray]:
    *stack, rows, columns = region
    rank = (0, term.left.shape[-1])
    left = term.left.read((*stack, rows, rank)).astype(np.float64)
    return left, term.right.read((*stack, rank, columns)).astype(np.float64)


def _norm(matrix: np.ndarray, axis: int) -> np.ndarray:
    return np.sqrt(np.sum(np.square(matrix), axis=axis, keepdims=True))
