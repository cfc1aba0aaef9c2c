"""Lazy tensors made of other tensors: the rectangle that is asked for is asked of them.

Constant       an array held in memory
Cast           another element type
Checked        the same values, of which those that are not finite are counted
Reshaped       the same values under another shape
Transposed     the last two axes exchanged
Sliced         a rectangle
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from ckpt_tools.tensors.casts import cast_array, count_nonfinite
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import (
    ByteRun,
    LazyTensor,
    Region,
    Statistics,
    Stored,
    byte_stretches,
    full_region,
    region_shape,
)

__all__ = ["Cast", "Checked", "Constant", "Reshaped", "Sliced", "Transposed", "reshape", "unreshaped"]


@final
@dataclass(frozen=True, eq=False)
class Constant(LazyTensor):
    """An array that is held in memory.

    Attributes:
        array: Its values.
        dtype: Their element type.
    """

    array: np.ndarray
    dtype: DType

    def __repr__(self) -> str:
        # A plan's digest is made of its repr, and numpy abbreviates long arrays.
        digest = hashlib.sha256(np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data).hexdigest()
        return f"Constant(dtype={self.dtype}, shape={self.shape}, sha256={digest})"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the array
        return self.array.shape

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        return _cut(self.array, region)


@final
@dataclass(frozen=True, slots=True)
class Cast(LazyTensor):
    """Another tensor's values, rounded to nearest even in another float type.

    Attributes:
        source: The tensor whose values are cast.
        dtype: The type they are cast to.
    """

    source: LazyTensor
    dtype: DType

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the source
        return self.source.shape

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        values = self.source.read(region, statistics)
        result = cast_array(values, self.dtype)
        if statistics is not None:
            statistics.nonfinite_input += count_nonfinite(values)
            statistics.nonfinite_output += count_nonfinite(result)
        return result

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


@final
@dataclass(frozen=True, slots=True)
class Checked(LazyTensor):
    """Another tensor's values; what of them is NaN or Inf is counted on the way.

    Attributes:
        source: The tensor with the values, of a float type.
    """

    source: LazyTensor

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the source
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the source
        return self.source.shape

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        values = self.source.read(region, statistics)
        if statistics is not None:
            statistics.nonfinite_input += count_nonfinite(values)
        return values

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


@final
@dataclass(frozen=True, slots=True)
class Reshaped(LazyTensor):
    """The same values in C order under another shape.

    Rows along a first axis that both shapes share are pushed down; any other region reads all of the source. Who reads
    all of one in stretches reads `unreshaped` instead.

    Attributes:
        source: The tensor with the values.
        shape: The shape they are given; the same number of elements.
    """

    source: LazyTensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the source
        return self.source.dtype

    def byte_runs(self) -> tuple[ByteRun, ...] | None:
        return self.source.byte_runs()

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        source_shape = self.source.shape
        shares_rows = len(region) > 0 and source_shape[:1] == self.shape[:1]
        if shares_rows and region[1:] == full_region(self.shape[1:]):
            rows = self.source.read((region[0], *full_region(source_shape[1:])), statistics)
            return rows.reshape(region_shape(region))
        return _cut(self.source.read(full_region(source_shape), statistics).reshape(self.shape), region)

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


def reshape(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The same values under another shape, by the cheapest kind of tensor that can say so."""
    if tensor.shape == shape:
        return tensor
    if isinstance(tensor, Stored):
        return Stored(tensor.dtype, shape, tensor.runs)
    return Reshaped(tensor, shape)


def unreshaped(tensor: LazyTensor) -> LazyTensor:
    """The tensor with the same values in C order under the shape in which they are produced."""
    while isinstance(tensor, Reshaped):
        tensor = tensor.source
    return tensor


@final
@dataclass(frozen=True, slots=True)
class Transposed(LazyTensor):
    """The last two axes of another tensor exchanged.

    Attributes:
        source: The tensor whose axes are exchanged.
    """

    source: LazyTensor

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the source
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the source
        *stack, rows, columns = self.source.shape
        return (*stack, columns, rows)

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        *stack, rows, columns = region
        return np.ascontiguousarray(self.source.read((*stack, columns, rows), statistics).swapaxes(-1, -2))

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


@final
@dataclass(frozen=True, slots=True)
class Sliced(LazyTensor):
    """A rectangle of another tensor.

    Attributes:
        source: The tensor that is cut.
        region: What is taken of it.
    """

    source: LazyTensor
    region: Region

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the source
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the region
        return region_shape(self.region)

    def byte_runs(self) -> tuple[ByteRun, ...] | None:
        runs = self.source.byte_runs()
        if runs is None:
            return None
        stretches = list(byte_stretches(self.source.shape, self.region, self.dtype.itemsize))
        return tuple(cut for start, length in stretches for cut in _cut_runs(runs, start, length))

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        return self.source.read(self._moved(region), statistics)

    def pieces(self, region: Region, statistics: Statistics | None = None) -> Iterator[np.ndarray]:
        return self.source.pieces(self._moved(region), statistics)

    def _moved(self, region: Region) -> Region:
        """A region of this tensor as one of the source."""
        return tuple((a + start, b + start) for (a, b), (start, _) in zip(region, self.region, strict=True))

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


def _cut(array: np.ndarray, region: Region) -> np.ndarray:
    """A copy of a rectangle of an array."""
    return np.array(array[tuple(slice(start, stop) for start, stop in region)], order="C")


def _cut_runs(runs: tuple[ByteRun, ...], start: int, length: int) -> Iterator[ByteRun]:
    begin = 0
    for run in runs:
        end = begin + run.length
        low, high = max(start, begin), min(start + length, end)
        if low < high:
            yield ByteRun(run.source, run.offset + low - begin, high - low)
        begin = end
