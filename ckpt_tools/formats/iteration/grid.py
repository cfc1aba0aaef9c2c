"""Where the chunks of a tensor lie in it: what their `global_offset` means, and what a layout says of a rank.

`global_offset` is documented as the element at which a chunk begins, and MindFormers 1.9 writes something else: one
number for all axes, the chunk's index in the grid of chunks, in C order. It never reads the number back as a place: it
loads by layout and rank. So the meaning is found by what it leads to: the one with which the chunks are a grid that
covers the tensor exactly once. Two meanings that both do so give every chunk the same place: a chunk that begins at a
number of elements and at as many times its own length is either the first of its axis or one element long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ckpt_tools.tensors.lazy import Region

__all__ = ["DeviceLayout", "Edges", "cells_of", "find_edges", "part_region", "place_chunks"]

Edges = tuple[tuple[int, ...], ...]
"""For each axis where it is cut, from 0 to its length."""


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """How a tensor is cut over the ranks of a group: MindSpore's `Layout`.

    Attributes:
        device_matrix: The ranks as a matrix.
        tensor_map: For each axis of the tensor the device axes that cut it, counted from the right, the outermost cut
            first; `()` where it is not cut.
        rank_list: The ranks, in the order in which they fill the matrix row by row.
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    rank_list: tuple[int, ...]

    @property
    def parts(self) -> tuple[int, ...]:
        """In how many parts each axis of the tensor is cut."""
        last = len(self.device_matrix) - 1
        return tuple(math.prod(self.device_matrix[last - axis] for axis in cuts) for cuts in self.tensor_map)


@lru_cache(maxsize=64)  # most tensors of a model are cut like many others
def cells_of(layout: DeviceLayout) -> Mapping[int, tuple[int, ...]]:
    """Each rank with the index, on each axis of the tensor, of the part that it holds."""
    last = len(layout.device_matrix) - 1
    coordinates = np.indices(layout.device_matrix, dtype=np.int64).reshape(last + 1, -1)
    columns = []
    for cuts in layout.tensor_map:
        index = np.zeros(len(layout.rank_list), np.int64)
        for axis in cuts:
            index = index * layout.device_matrix[last - axis] + coordinates[last - axis]
        columns.append(index.tolist())
    cells = zip(*columns, strict=True) if columns else itertools.repeat(())
    return dict(zip(layout.rank_list, cells, strict=False))  # a scalar's one cell is repeated without end


def part_region(shape: tuple[int, ...], parts: tuple[int, ...], cell: tuple[int, ...]) -> Region | None:
    """The place of a cell in a tensor that is cut into equal parts; None where it cannot be."""
    if any(size % count for size, count in zip(shape, parts, strict=True)):
        return None
    lengths = [size // count for size, count in zip(shape, parts, strict=True)]
    return tuple((index * length, (index + 1) * length) for index, length in zip(cell, lengths, strict=True))


def place_chunks(
    shape: tuple[int, ...], offsets: Sequence[tuple[int, ...]], local_shapes: Sequence[tuple[int, ...]]
) -> tuple[list[Region], Edges] | None:
    """The place of each chunk of a tensor, and the grid that they are; None where no meaning of the offsets gives one.

    Args:
        shape: The whole tensor's shape.
        offsets: The chunks' `global_offset`.
        local_shapes: The chunks' shapes, with as many axes as the whole.
    """
    for start_of in (_by_element, _by_slice, _by_flat_slice):
        starts = [start_of(shape, offset, local) for offset, local in zip(offsets, local_shapes, strict=True)]
        regions = [
            tuple((low, low + length) for low, length in zip(start, local, strict=True))
            for start, local in zip(starts, local_shapes, strict=True)
            if start is not None
        ]
        edges = find_edges(shape, regions) if len(regions) == len(offsets) else None
        if edges is not None:
            return regions, edges
    return None


def find_edges(shape: tuple[int, ...], regions: Sequence[Region]) -> Edges | None:
    """The grid whose cells are these regions, each of them once; None where they are not all the cells of a grid.

    The regions of a tensor without elements may repeat.
    """
    edges = tuple((*sorted({region[axis][0] for region in regions}), size) for axis, size in enumerate(shape))
    steps = [dict(itertools.pairwise(cuts)) for cuts in edges]
    distinct = set(regions)
    is_grid = (
        all(cuts[0] == 0 for cuts in edges)
        and len(distinct) == math.prod(len(cuts) - 1 for cuts in edges)
        and (len(distinct) == len(regions) or 0 in shape)
        and all(all(step.get(low) == high for step, (low, high) in zip(steps, cell, strict=True)) for cell in distinct)
    )
    return edges if is_grid else None


_StartOf = Callable[[tuple[int, ...], tuple[int, ...], tuple[int, ...]], "tuple[int, ...] | None"]


def _by_element(shape: tuple[int, ...], offset: tuple[int, ...], local: tuple[int, ...]) -> tuple[int, ...] | None:
    """The element at which the chunk begins; (0,) stands for the origin of a tensor with any number of axes."""
    if not any(offset):
        return (0,) * len(shape)
    return offset if len(offset) == len(shape) else None


def _by_slice(shape: tuple[int, ...], offset: tuple[int, ...], local: tuple[int, ...]) -> tuple[int, ...] | None:
    """The index of the chunk on each axis."""
    if len(offset) != len(shape):
        return None
    return tuple(index * length for index, length in zip(offset, local, strict=True))


def _by_flat_slice(shape: tuple[int, ...], offset: tuple[int, ...], local: tuple[int, ...]) -> tuple[int, ...] | None:
    """The index of the chunk in the grid of chunks, in C order."""
    if len(offset) != 1:
        return None
    index = offset[0]
    starts = []
    for size, length in zip(reversed(shape), reversed(local), strict=True):
        index, part = divmod(index, max(size // length, 1) if length else 1)
        starts.append(part * length)
    return None if index else tuple(reversed(starts))
