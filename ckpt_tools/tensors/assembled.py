"""A whole tensor made of the slices that ranks hold."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Region, Statistics, full_region, region_shape
from ckpt_tools.tensors.sources import Source

__all__ = ["Assembled", "FileParts", "concatenated"]


class FileParts(Sequence[LazyTensor]):
    """Parts that are whole tensors of files, made when they are asked for."""

    @abstractmethod
    def files(self) -> Iterable[Source]:
        """The files that hold them."""


@final
@dataclass(frozen=True, slots=True)
class Assembled(LazyTensor):
    """Parts in the cells of a grid: each element of the whole is in exactly one of them.

    Attributes:
        edges: For each axis where it is cut, from 0 to its length.
        parts: The cells' tensors in C order, of one type and of the cells' shapes.

    Raises:
        ValueError: The parts are not those of the grid.
    """

    edges: tuple[tuple[int, ...], ...]
    parts: Sequence[LazyTensor]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple):
            return  # parts that are made when they are asked for; whoever made the sequence knows their shapes
        shapes = itertools.product(*([b - a for a, b in itertools.pairwise(cuts)] for cuts in self.edges))
        if [part.shape for part in self.parts] != list(shapes):
            raise ValueError("parts of other shapes than the grid's cells")
        if len({part.dtype for part in self.parts}) != 1:
            raise ValueError("parts of several types")

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the parts
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the edges
        return tuple(cuts[-1] for cuts in self.edges)

    def byte_runs(self) -> tuple[ByteRun, ...] | None:
        # In C order the parts follow each other only where all axes but the first that is longer than 1 are whole.
        counts = [len(cuts) - 1 for cuts in self.edges]
        cut = [axis for axis, count in enumerate(counts) if count > 1]
        if cut and (len(cut) > 1 or math.prod(self.shape[: cut[0]]) > 1):
            return None
        runs = [part.byte_runs() for part in self.parts]
        if any(run is None for run in runs):
            return None
        return tuple(run for group in runs if group is not None for run in group)

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        cells = list(self._cells(region))
        if len(cells) == 1:
            part, inner, _ = cells[0]
            return part.read(inner, statistics)
        out = np.empty(region_shape(region), self.dtype.numpy)
        for part, inner, place in cells:
            out[place] = part.read(inner, statistics)
        return out

    def sources(self) -> Iterator[ByteRun]:
        for part in self.parts:
            yield from part.sources()

    def files(self) -> Iterable[Source] | None:
        return self.parts.files() if isinstance(self.parts, FileParts) else None

    def _cells(self, region: Region) -> Iterator[tuple[LazyTensor, Region, tuple[slice, ...]]]:
        """The parts that a region meets, what of them lies in it, and where in the region that is."""
        spans = [_spans(cuts, start, stop) for cuts, (start, stop) in zip(self.edges, region, strict=True)]
        for choice in itertools.product(*spans):
            index = 0
            for cuts, (cell, _, _) in zip(self.edges, choice, strict=True):
                index = index * (len(cuts) - 1) + cell
            inner = tuple(span for _, span, _ in choice)
            yield self.parts[index], inner, tuple(place for _, _, place in choice)


def concatenated(parts: tuple[LazyTensor, ...], axis: int = 0) -> Assembled:
    """Tensors, alike in all other axes, behind each other along one axis."""
    lengths = itertools.accumulate((part.shape[axis] for part in parts), initial=0)
    edges = [*full_region(parts[0].shape)]
    return Assembled((*edges[:axis], tuple(lengths), *edges[axis + 1 :]), parts)


def _spans(cuts: tuple[int, ...], start: int, stop: int) -> list[tuple[int, tuple[int, int], slice]]:
    """The cells of an axis that a range meets: (cell, range within it, where in the range that is)."""
    found = []
    cell = bisect_right(cuts, start) - 1
    while cell < len(cuts) - 1 and cuts[cell] < stop:
        low, high = max(start, cuts[cell]), min(stop, cuts[cell + 1])
        if low < high:
            found.append((cell, (low - cuts[cell], high - cuts[cell]), slice(low - start, high - start)))
        cell += 1
    return found
