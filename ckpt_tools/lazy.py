"""Lazy tensors: a dtype, a shape, and any rectangle of the values on request.

A plan is made of them. Nothing is read before `read` is called, and a slice is pushed down to the bytes that it
needs, so operations compose without code for each combination.

    LazyTensor
      Stored         bytes at offsets of files
      Constant       a small array held in memory
      Cast           another element type
      Reshaped       the same values under another shape
      Transposed     the last two axes exchanged
      Sliced         a rectangle of another tensor
      Concatenated   several tensors behind each other on one axis

What folds adapters into weights (`Merged`, `DoraMerged`, ...) stands in `ckpt_tools.folding`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ckpt_tools.casts import cast_array, count_nonfinite
from ckpt_tools.dtypes import DType
from ckpt_tools.sources import Source, read_into

__all__ = [
    "ByteRun",
    "Cast",
    "Concatenated",
    "Constant",
    "LazyTensor",
    "Region",
    "Reshaped",
    "Sliced",
    "Statistics",
    "Stored",
    "Transposed",
    "full_region",
    "region_shape",
    "reshape",
]

Region = tuple[tuple[int, int], ...]
"""A rectangle: a half-open (start, stop) for each axis."""


def full_region(shape: Sequence[int]) -> Region:
    """The region that is all of a tensor."""
    return tuple((0, size) for size in shape)


def region_shape(region: Region) -> tuple[int, ...]:
    """The shape of what a region selects."""
    return tuple(stop - start for start, stop in region)


@dataclass(frozen=True, slots=True)
class ByteRun:
    """`length` consecutive bytes of a file, from `offset` on."""

    source: Source
    offset: int
    length: int


@dataclass(slots=True)
class Statistics:
    """What a fold measures while it passes over a weight, in one tile; sums of tiles add up.

    Attributes:
        elements: Elements that were folded.
        weight_square: Sum of the squares of the weight before.
        delta_square: Sum of the squares of the delta.
        unchanged: Elements whose stored bits are those of the weight before, cast to the output type.
        nonfinite_input: NaN or Inf elements in the weight before.
        nonfinite_output: NaN or Inf elements in the result.
    """

    elements: int = 0
    weight_square: float = 0.0
    delta_square: float = 0.0
    unchanged: int = 0
    nonfinite_input: int = 0
    nonfinite_output: int = 0

    def add(self, other: Statistics) -> None:
        """Add the sums of another tile to these."""
        self.elements += other.elements
        self.weight_square += other.weight_square
        self.delta_square += other.delta_square
        self.unchanged += other.unchanged
        self.nonfinite_input += other.nonfinite_input
        self.nonfinite_output += other.nonfinite_output


class LazyTensor(ABC):
    """A tensor whose values are produced on request.

    Implementations are immutable, picklable and safe to read from several threads at once.

    Attributes:
        dtype: The element type of what `read` returns.
        shape: Elements along each axis; `()` for a scalar.
    """

    dtype: DType
    shape: tuple[int, ...]

    @abstractmethod
    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        """The values of a rectangle, C-contiguous, of `dtype.numpy`, with the region's shape.

        Args:
            region: A (start, stop) for each axis, within the shape.
            statistics: Where a fold adds what it measured; kinds that measure nothing ignore it.

        Raises:
            ResourceError: An I/O call failed.
            InputChangedError: A file is shorter than it was when it was opened.
        """

    def byte_runs(self) -> tuple[ByteRun, ...] | None:
        """The bytes of files that, one behind the other, are this tensor in C order; None where it must be computed."""
        return None

    @property
    def size(self) -> int:
        """Elements in all."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return self.size * self.dtype.itemsize

    def read_all(self) -> np.ndarray:
        """All of the values: for small tensors."""
        return self.read(full_region(self.shape))

    def sources(self) -> Iterator[ByteRun]:
        """The stretches of files that reading all of this tensor touches; an upper bound, for predictions."""
        runs = self.byte_runs()
        if runs is not None:
            yield from runs


@final
@dataclass(frozen=True, slots=True)
class Stored(LazyTensor):
    """Bytes at offsets of files, little-endian and in C order.

    Attributes:
        runs: The stretches that, one behind the other, hold the content; their lengths add up to `nbytes`.
    """

    dtype: DType
    shape: tuple[int, ...]
    runs: tuple[ByteRun, ...]

    def byte_runs(self) -> tuple[ByteRun, ...]:
        return self.runs

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        out = np.empty(region_shape(region), self.dtype.numpy)
        if out.size == 0:
            return out
        target = out.reshape(-1).view(np.uint8).data
        done = 0
        for start, length in _byte_stretches(self.shape, region, self.dtype.itemsize):
            self._read_stretch(start, target[done : done + length])
            done += length
        return out

    def _read_stretch(self, start: int, target: memoryview) -> None:
        begin = 0
        for run in self.runs:
            end = begin + run.length
            if begin < start + len(target) and start < end:
                low, high = max(start, begin), min(start + len(target), end)
                read_into(run.source, run.offset + low - begin, target[low - start : high - start])
            begin = end


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
        return np.ascontiguousarray(self.array[_slices(region)])


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
class Reshaped(LazyTensor):
    """The same values in C order under another shape.

    Rows along a first axis that both shapes share are pushed down; any other region reads all of the source.

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
        whole = self.source.read(full_region(source_shape), statistics).reshape(self.shape)
        return np.ascontiguousarray(whole[_slices(region)])

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


def reshape(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The same values under another shape, by the cheapest kind of tensor that can say so."""
    if tensor.shape == shape:
        return tensor
    if isinstance(tensor, Stored):
        return Stored(tensor.dtype, shape, tensor.runs)
    return Reshaped(tensor, shape)


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
        stretches = list(_byte_stretches(self.source.shape, self.region, self.dtype.itemsize))
        return tuple(cut for start, length in stretches for cut in _cut_runs(runs, start, length))

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        moved = tuple((a + start, b + start) for (a, b), (start, _) in zip(region, self.region, strict=True))
        return self.source.read(moved, statistics)

    def sources(self) -> Iterator[ByteRun]:
        return self.source.sources()


@final
@dataclass(frozen=True, slots=True)
class Concatenated(LazyTensor):
    """Several tensors of one type behind each other along one axis.

    Attributes:
        parts: The tensors, alike in all other axes.
        axis: The axis along which they follow each other.
    """

    parts: tuple[LazyTensor, ...]
    axis: int = 0

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the parts
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the parts
        first = self.parts[0].shape
        length = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], length, *first[self.axis + 1 :])

    def byte_runs(self) -> tuple[ByteRun, ...] | None:
        if self.axis != 0:
            return None
        runs = [part.byte_runs() for part in self.parts]
        if any(run is None for run in runs):
            return None
        return tuple(run for group in runs if group is not None for run in group)

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        start, stop = region[self.axis]
        pieces, begin = [], 0
        for part in self.parts:
            end = begin + part.shape[self.axis]
            low, high = max(start, begin), min(stop, end)
            if low < high:
                inner = (*region[: self.axis], (low - begin, high - begin), *region[self.axis + 1 :])
                pieces.append(part.read(inner, statistics))
            begin = end
        if not pieces:
            return np.empty(region_shape(region), self.dtype.numpy)
        return pieces[0] if len(pieces) == 1 else np.ascontiguousarray(np.concatenate(pieces, self.axis))

    def sources(self) -> Iterator[ByteRun]:
        for part in self.parts:
            yield from part.sources()


def _slices(region: Region) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in region)


def _byte_stretches(shape: tuple[int, ...], region: Region, itemsize: int) -> Iterator[tuple[int, int]]:
    """The (start, length) in bytes, in C order, of the stretches of a tensor that a region covers."""
    if any(start >= stop for start, stop in region):
        return
    # Axes behind `split` are taken whole: one stretch covers them and a range of the axis `split` itself.
    split = len(shape)
    while split > 0 and region[split - 1] == (0, shape[split - 1]):
        split -= 1
    if split == 0:
        yield 0, math.prod(shape) * itemsize
        return
    inner = math.prod(shape[split:]) * itemsize
    low, high = region[split - 1]
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(split - 1)]
    for index in np.ndindex(*(stop - start for start, stop in region[: split - 1])):
        base = sum((region[axis][0] + i) * strides[axis] for axis, i in enumerate(index))
        yield base + low * inner, (high - low) * inner


def _cut_runs(runs: tuple[ByteRun, ...], start: int, length: int) -> Iterator[ByteRun]:
    begin = 0
    for run in runs:
        end = begin + run.length
        low, high = max(start, begin), min(start + length, end)
        if low < high:
            yield ByteRun(run.source, run.offset + low - begin, high - low)
        begin = end
