"""What a layout means: into how many parts each axis is cut, and which of them a rank holds.

The rules are those of `mindspore.parallel._tensor`: ranks count the device matrix row by row; an axis that several
device axes cut is cut by the first of them, each part by the second, and so on; an optimizer shard cuts axis 0 of the
slice once more, over device axes on which the slice would be the same, the rightmost ones first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ckpt_tools.layout.expanded import folded_whole
from ckpt_tools.layout.model import Layout
from ckpt_tools.tensors.lazy import Region, full_region
from surgery.errors import MismatchError, Problem

__all__ = ["Cut", "cell_region", "cut_evenly", "cut_of", "regions_of"]


@dataclass(frozen=True, slots=True)
class Cut:
    """How the ranks of a stage share a tensor: a grid of cells, and the cell of each rank.

    Attributes:
        parts: For each axis, in how many parts it is cut.
        cells: For each rank of the stage the index of its part on each axis.
        holders: For each cell, in C order, the ranks that hold it, in ascending order.
        first_holders: The first of these ranks, for each cell.
    """

    parts: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]
    holders: Mapping[tuple[int, ...], tuple[int, ...]] = field(hash=False)
    first_holders: tuple[int, ...]


def cut_of(layout: Layout, axes: int, where: str) -> Cut:
    """The cut that a layout makes of a tensor.

    Args:
        layout: The layout.
        axes: How many axes the tensor has.
        where: What to call the tensor in an error.

    Raises:
        MismatchError: The layout is for a tensor with another number of axes, or its optimizer shards do not fit its
            device matrix.
    """
    cut = _cut_or_problem(layout, axes)
    if isinstance(cut, Problem):
        raise MismatchError(replace(cut, where=where))
    return cut


# A network has thousands of parameters and a handful of layouts.
@lru_cache(maxsize=1024)
def _cut_or_problem(layout: Layout, axes: int) -> Cut | Problem:
    tensor_map = layout.tensor_map
    if len(tensor_map) != axes:
        if any(tensor_map):
            expected = f"{len(tensor_map)}, as in the strategy"
            return Problem("", f"{axes} axes", expected, "Is it the strategy of this run?")
        tensor_map = ((),) * axes
    digits = [[_Digit.of(layout.device_matrix, axis) for axis in cuts] for cuts in tensor_map]
    if layout.shard_step and layout.shard_size:
        if not axes:
            return Problem("", "a scalar", "an axis for the optimizer shards of its layout")
        shards = _shard_digits(layout)
        if isinstance(shards, Problem):
            return shards
        digits[0] += shards
    parts = tuple(math.prod(digit.size for digit in axis) for axis in digits)
    cells = tuple(tuple(_index(axis, rank) for axis in digits) for rank in range(layout.devices))
    holders: dict[tuple[int, ...], list[int]] = {cell: [] for cell in itertools.product(*map(range, parts))}
    for rank, cell in enumerate(cells):
        holders[cell].append(rank)
    groups = {cell: tuple(ranks) for cell, ranks in holders.items()}
    return Cut(parts, cells, groups, tuple(ranks[0] for ranks in groups.values()))


def cut_evenly(
    shape: tuple[int, ...], parts: tuple[int, ...], split_shape: tuple[int, ...], where: str
) -> tuple[tuple[int, ...], ...]:
    """Where each axis of a tensor is cut: the edges of its parts, 0 and the axis' length included.

    Args:
        shape: The whole tensor's shape.
        parts: In how many parts each axis is cut.
        split_shape: The lengths of the parts of axis 0, where they are not equal; or empty.
        where: What to call the tensor in an error.

    Raises:
        MismatchError: An axis cannot be cut so.
    """
    edges = _edges_or_problem(shape, parts, split_shape)
    if isinstance(edges, Problem):
        raise MismatchError(replace(edges, where=where))
    return edges


@lru_cache(maxsize=1024)
def _edges_or_problem(
    shape: tuple[int, ...], parts: tuple[int, ...], split_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], ...] | Problem:
    edges = []
    for axis, (size, count) in enumerate(zip(shape, parts, strict=True)):
        if axis == 0 and split_shape and count > 1:
            lengths = split_shape
            if len(lengths) != count or sum(lengths) != size:
                found = f"param_split_shape {list(lengths)}"
                return Problem("", found, f"{count} lengths that add up to the axis' length {size}")
        elif size % count:
            found = f"axis {axis} of length {size}"
            return Problem("", found, f"one that {count} ranks can share evenly")
        else:
            lengths = (size // count,) * count
        edges.append(tuple(itertools.accumulate(lengths, initial=0)))
    return tuple(edges)


@lru_cache(maxsize=1024)
def regions_of(layout: Layout, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[Region | None, ...]]:
    """Into how many parts each axis of a tensor is cut, and the rectangle that each rank holds; None for all of it.

    Raises:
        MismatchError: The layout cannot be one of a tensor of this shape; which tensor, only the caller knows.
    """
    layout = folded_whole(layout, shape)
    cut = cut_of(layout, len(shape), "")
    edges = cut_evenly(shape, cut.parts, layout.split_shape, "")
    regions = (cell_region(edges, cell) for cell in cut.cells)
    return cut.parts, tuple(None if region == full_region(shape) else region for region in regions)


def cell_region(edges: tuple[tuple[int, ...], ...], cell: tuple[int, ...]) -> Region:
    """The rectangle of a tensor that a cell is."""
    return tuple((cuts[index], cuts[index + 1]) for cuts, index in zip(edges, cell, strict=True))


@dataclass(frozen=True, slots=True)
class _Digit:
    """A digit of a rank's number: (rank // step) % size."""

    step: int
    size: int

    @classmethod
    def of(cls, device_matrix: tuple[int, ...], axis: int) -> _Digit:
        """The coordinate of a rank on a device axis, counted from the right."""
        position = len(device_matrix) - 1 - axis
        return cls(math.prod(device_matrix[position + 1 :]), device_matrix[position])


def _index(digits: list[_Digit], rank: int) -> int:
    index = 0
    for digit in digits:
        index = index * digit.size + rank // digit.step % digit.size
    return index


def _shard_digits(layout: Layout) -> list[_Digit] | Problem:
    """The device axes, or the fast part of one, over which optimizer shards lie; the slowest first."""
    taken = {axis for cuts in layout.tensor_map for axis in cuts}
    free = [axis for axis in range(len(layout.device_matrix)) if axis not in taken]
    repeated = [digit for axis in free if (digit := _Digit.of(layout.device_matrix, axis)).size > 1]
    available = math.prod(digit.size for digit in repeated)
    wanted = available if layout.shard_size == -1 else layout.shard_size
    left, chosen = wanted, list[_Digit]()
    for digit in repeated:
        if left == 1:
            break
        size = min(digit.size, left)
        if left % size or digit.size % size:
            break
        chosen.insert(0, _Digit(digit.step, size))
        left //= size
    if left != 1:
        found = f"{wanted} optimizer shards in a device matrix {list(layout.device_matrix)}"
        free_sizes = " x ".join(str(digit.size) for digit in reversed(repeated)) or "no"
        return Problem("", found, f"shards that its {free_sizes} replicas can hold")
    # With several axes to choose from, MindSpore leaves the step unused.
    if len(repeated) == 1 and chosen and chosen[0].step != layout.shard_step:
        return Problem("", f"opt_weight_shard_step {layout.shard_step}", f"{chosen[0].step}, by its device matrix")
    return chosen
