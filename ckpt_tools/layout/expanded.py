"""Layouts that MindSpore's compiler expanded: what its JSON says of a parameter that was given a `Layout(...)`.

An axis that several device axes cut is reshaped to one axis for each of them: (512, 1024) with the map ((2,), (1, 0))
on the matrix (8, 2, 4) is written as the map 2, 1, 0 of (512, 2, 512). All axes of a group but the last are as long as
the device axis that cuts them, and 1 where it is of size 1, which the compiler leaves out of the matrix; an axis
`interleaved_parallel`, which stands for no devices, counts as one. (`TensorLayout::InitFromExtendVector`, MindSpore.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from ckpt_tools.layout.model import Layout

__all__ = ["expanded_shape", "folded_slice", "folded_whole"]


def expanded_shape(layout: Layout, shape: Sequence[int]) -> tuple[int, ...]:
    """What `tensor_shape` of a layout says that its map does not: empty where no two of its axes can be one."""
    sizes = _sizes(layout)
    may_be = len(shape) == len(sizes) and any(length == size for length, size in zip(shape[:-1], sizes, strict=False))
    return tuple(shape) if may_be else ()


def folded_whole(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The layout of a whole tensor of this shape; as it is where it cannot be told."""
    return _folded(layout, shape, ())


def folded_slice(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The same, where the shape is that of a rank's slice."""
    return _folded(layout, shape, _sizes(layout))


def _folded(layout: Layout, shape: tuple[int, ...], cuts: tuple[int, ...]) -> Layout:
    lengths = layout.expanded_shape
    if not lengths or len(lengths) == len(shape):
        return layout
    sizes, found = _sizes(layout), []
    for groups in _groups(len(lengths), len(shape)):
        is_one = all(lengths[axis] == sizes[axis] for start, stop in groups for axis in range(start, stop - 1))
        wholes = [math.prod(lengths[start:stop]) for start, stop in groups]
        parts = [math.prod(cuts[start:stop]) for start, stop in groups]
        if is_one and _fit(wholes, parts, shape, with_shards=bool(cuts and layout.shard_step and layout.shard_size)):
            found.append(tuple(sum(layout.tensor_map[start:stop], ()) for start, stop in groups))
    return replace(layout, tensor_map=found[0], expanded_shape=()) if len(found) == 1 else layout


def _fit(wholes: list[int], parts: list[int], shape: tuple[int, ...], *, with_shards: bool) -> bool:
    """Whether axes of these lengths, cut so often, have this shape; optimizer shards cut the first once more."""
    for axis, (whole, part, length) in enumerate(zip(wholes, parts, shape, strict=True)):
        if axis == 0 and with_shards:
            if not length or whole % (part * length):
                return False
        elif whole != part * length:
            return False
    return True


def _groups(count: int, wanted: int) -> Iterator[list[tuple[int, int]]]:
    """All ways to divide axes that follow each other into groups."""
    if 0 < wanted <= count:
        for edges in combinations(range(1, count), wanted - 1):
            yield list(pairwise((0, *edges, count)))


def _sizes(layout: Layout) -> tuple[int, ...]:
    """In how many parts each axis of the map is cut."""
    matrix = layout.device_matrix
    return tuple(math.prod(matrix[len(matrix) - 1 - axis] for axis in axes) for axes in layout.tensor_map)
