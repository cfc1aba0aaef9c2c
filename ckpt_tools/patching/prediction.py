"""What the base was, as far as merged model and adapter tell: W = M - delta, with the same bits on every machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from ckpt_tools.fingerprint import fingerprint
from ckpt_tools.patching.products import ExactProduct
from ckpt_tools.tensors.casts import narrow, widen
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.folding import LowRankTerm
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Region, Statistics

__all__ = ["OneNaN", "Prediction", "merged_fingerprint", "with_one_nan"]

# NaN comes out of arithmetic with other bits on another processor, in another place: these stand for all of them.
_NAN_BITS = {"fp16": 0x7E00, "bf16": 0x7FC0, "fp32": 0x7FC00000, "fp64": 0x7FF8000000000000}


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a weight of the base follows from what it became: W = M / factor - sum of scaling * (left @ right).

    Where there are no terms, it is what it became; where that has another type, cast.

    Attributes:
        dtype: The weight's type in the base.
        terms: What was added; of a matrix, or of a stack of matrices.
        factor: What DoRA multiplied each output feature with; None without DoRA.
        axis: Which axis of the matrix counts the output features.
    """

    dtype: DType
    terms: tuple[LowRankTerm, ...] = ()
    factor: np.ndarray | None = None
    axis: int = 0

    @property
    def inner(self) -> np.dtype[np.generic]:
        """The type that is computed in: float32, or float64 where the weight is float64."""
        return BY_NAME["fp64" if self.dtype.name == "fp64" else "fp32"].numpy

    def delta(self, place: Region, rows: tuple[int, int], columns: int) -> ExactProduct | None:
        """What was added to some rows of a matrix; None where nothing is known to have been.

        Args:
            place: The matrix's place in the stack; empty for a matrix by itself.
            rows: The rows.
            columns: The matrix's columns.
        """
        if not self.terms:
            return None
        lefts, rights = [], []
        for term in self.terms:
            rank = (0, term.left.shape[-1])
            left = widen(term.left.read((*place, rows, rank))).astype(self.inner)
            right = widen(term.right.read((*place, rank, (0, columns)))).astype(self.inner)
            with np.errstate(over="ignore", invalid="ignore"):
                right *= self.inner.type(term.scaling)
            lefts.append(left.reshape(left.shape[-2:]))
            rights.append(right.reshape(right.shape[-2:]))
        return ExactProduct.of(np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0))

    def of(self, merged: np.ndarray, delta: np.ndarray | None, rows: tuple[int, int]) -> np.ndarray:
        """The predicted values, C-contiguous and of `dtype`.

        Args:
            merged: Some rows of what the weight became; it may be overwritten.
            delta: What was added to them, float64.
            rows: Which rows of the matrix they are.
        """
        if merged.dtype == self.dtype.numpy and delta is None and self.factor is None:
            return merged
        with np.errstate(all="ignore"):
            values = np.array(widen(merged), self.inner, order="C")
            if self.factor is not None:
                values /= self.factor[rows[0] : rows[1], None] if self.axis == 0 else self.factor
            if delta is not None:
                values -= delta.astype(self.inner, copy=False)
            predicted = np.empty(values.shape, self.dtype.numpy)
            narrow(values, predicted)
        return with_one_nan(predicted, self.dtype)


def with_one_nan(values: np.ndarray, dtype: DType) -> np.ndarray:
    """The same floating-point values, C-contiguous, in place: whatever is NaN gets the same bits."""
    unknown = np.isnan(values)
    if unknown.any():
        values.view(f"<u{dtype.itemsize}")[unknown] = _NAN_BITS[dtype.name]
    return values


@final
@dataclass(frozen=True, slots=True)
class OneNaN(LazyTensor):
    """Another tensor's values, of a float type; whatever is NaN has the same bits.

    Attributes:
        source: The tensor with the values.
    """

    source: LazyTensor

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the source
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the source
        return self.source.shape

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            return with_one_nan(self.source.read(region), self.dtype)

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


def merged_fingerprint(tensors: Mapping[str, LazyTensor]) -> str:
    """The fingerprint of a merged model; that of one with NaN does not depend on which NaN they are.

    Args:
        tensors: Name to tensor: what the base's tensors became.
    """
    return fingerprint({name: OneNaN(one) if one.dtype.is_float else one for name, one in tensors.items()})
