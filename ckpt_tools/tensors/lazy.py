"""Lazy tensors: a dtype, a shape, and any rectangle of the values on request.

A plan is made of them. Nothing is read before `read` is called, and a slice is pushed down to the bytes that it
needs, so operations compose without code for each combination.

Bytes at offsets of files are `Stored`. What is made of other tensors stands in `views` (casts, slices) and in `folding`
(weights with adapters folded in).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.sources import Source, read_into

__all__ = [
    "ByteRun",
    "LazyTensor",
    "Region",
    "Statistics",
    "Stored",
    "bands",
    "byte_stretches",
    "files_of",
    "full_region",
    "region_shape",
]

# Rows of a fold's tile: a stretch that ends within one would leave a small tile behind.
_ALIGNED_ROWS = 64

# What is read, computed and written in one go stays in a core's second-level cache.
_PIECE_BYTES = 2**19

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

        The array is the caller's own, who may overwrite it.

        Args:
            region: A (start, stop) for each axis, within the shape.
            statistics: Where a fold adds what it measured; kinds that measure nothing ignore it.

        Raises:
            ResourceError: An I/O call failed.
            InputChangedError: A file is shorter than it was when it was opened.
        """

    def pieces(self, region: Region, statistics: Statistics | None = None) -> Iterator[np.ndarray]:
        """The values of a rectangle in arrays of about 512 KiB, which follow each other in C order.

        Args:
            region: As for `read`.
            statistics: As for `read`.
        """
        for piece in bands(region_shape(region), _PIECE_BYTES // self.dtype.itemsize):
            place = tuple((low + start, low + stop) for (low, _), (start, stop) in zip(region, piece, strict=True))
            yield self.read(place, statistics)

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

    def files(self) -> Iterable[Source] | None:
        """The files whose bytes this tensor is, each byte once, where that is known without listing all stretches."""
        return None


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
        for start, length in byte_stretches(self.shape, region, self.dtype.itemsize):
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


def files_of(tensor: LazyTensor) -> set[Source]:
    """The files that reading a tensor touches."""
    files = tensor.files()
    return {run.source for run in tensor.sources()} if files is None else set(files)


def byte_stretches(shape: tuple[int, ...], region: Region, itemsize: int) -> Iterator[tuple[int, int]]:
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


def bands(shape: tuple[int, ...], max_elements: int) -> Iterator[Region]:
    """Cut a tensor into stretches that follow each other in C order.

    Args:
        shape: The tensor's shape.
        max_elements: Elements in a stretch at most, unless a single row of the last axis is longer.
    """
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner > max_elements and len(shape) > 2:
        for index in range(shape[0]):
            for rest in bands(shape[1:], max_elements):
                yield ((index, index + 1), *rest)
        return
    step = max(1, max_elements // max(inner, 1))
    if step > _ALIGNED_ROWS:
        step -= step % _ALIGNED_ROWS
    whole = tuple((0, size) for size in shape[1:])
    for start in range(0, shape[0], step):
        yield ((start, min(start + step, shape[0])), *whole)
