"""Layouts that MindSpore's compiler expanded: what its JSON says of a parameter that was given a `Layout(...)`.

An axis that several device axes cut is reshaped to one axis for each of them: (512, 1024) with the map ((2,), (1, 0))
on the matrix (8, 2, 4) is written as the map 2, 1, 0 of (512, 2, 512). All axes of a group but the last are as long as
the device axis that cuts them, and 1 where it is of size 1, which the compiler leaves out of the matrix; an axis
`interleaved_parallel`, which stands for no devices, counts as one. (`TensorLayout::InitFromExtendVector`, MindSpore.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

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
    with_shards = bool(cuts and layout.shard_step and layout.shard_size)
    found = _groupings(lengths, _sizes(layout), shape, cuts, with_shards=with_shards)
    if len(found) != 1:
        return layout
    tensor_map = tuple(sum(layout.tensor_map[start:stop], ()) for start, stop in pairwise((0, *found[0])))
    return replace(layout, tensor_map=tensor_map, expanded_shape=())


def _groupings(
    lengths: tuple[int, ...],
    sizes: tuple[int, ...],
    shape: tuple[int, ...],
    cuts: tuple[int, ...],
    *,
    with_shards: bool,
) -> list[tuple[int, ...]]:
    """The ways to make the axes of a shape of groups of expanded axes that follow each other.

    Args:
        lengths: Of each expanded axis.
        sizes: In how many parts each expanded axis is cut.
        shape: The shape to make.
        cuts: In how many parts each expanded axis is cut where the shape is that of a slice; else empty.
        with_shards: Whether optimizer shards cut the first axis of the slice once more.

    Returns:
        For each way the ends of its groups. Two of them at most: what can be read in two ways cannot be told. So the
        work is bounded, while the ways of 32 axes are 10^8 and more.
    """

    @cache
    def ways(start: int, axis: int) -> list[tuple[int, ...]]:
        if axis == len(shape):
            return [()] if start == len(lengths) else []
        found: list[tuple[int, ...]] = []
        for stop in range(start + 1, len(lengths) + 1):
            whole, part = math.prod(lengths[start:stop]), math.prod(cuts[start:stop])
            if _fits(whole, part * shape[axis], is_divided=with_shards and axis == 0):
                found += [(stop, *rest) for rest in ways(stop, axis + 1)]
            # All axes of a group but the last are as long as what cuts them.
            if len(found) > 1 or lengths[stop - 1] != sizes[stop - 1]:
                break
        return found[:2]

    return ways(0, 0)


def _fits(whole: int, together: int, *, is_divided: bool) -> bool:
    """Whether slices that have a length together make up an axis, or so many of them that shards divide them."""
    return bool(together) and whole % together == 0 if is_divided else whole == together


def _sizes(layout: Layout) -> tuple[int, ...]:
    """In how many parts each axis of the map is cut."""
    matrix = layout.device_matrix
    return tuple(math.prod(matrix[len(matrix) - 1 - axis] for axis in axes) for axes in layout.tensor_map)
