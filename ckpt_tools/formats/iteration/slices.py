"""The slices that ranks have of tensors, gathered: the grid that they are, who holds which cell, a layout for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.iteration.folder import MODEL
from ckpt_tools.formats.iteration.grid import DeviceLayout, find_edges
from ckpt_tools.formats.strict_json import is_encodable
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import Region, region_shape
from surgery.errors import MismatchError, Problem

__all__ = ["RankSlice", "SlicedTensor", "gather_slices"]

_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class RankSlice:
    """What a rank has of a tensor.

    Attributes:
        name: The tensor's name.
        dtype: Its type.
        shape: The whole tensor's shape.
        region: The place of the slice in it.
        kind: `MODEL` or `OPTIMIZER`: which file it goes into.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    region: Region
    kind: str = MODEL


@dataclass(frozen=True, slots=True)
class SlicedTensor:
    """A tensor that is cut into equal parts, and the ranks that hold them.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        parts: In how many parts each axis is cut.
        cells: The place of each cell to its index, in C order of the grid.
        holders: The index of each cell to the ranks that hold it; in the order of the first ranks that do.
    """

    dtype: DType
    shape: tuple[int, ...]
    parts: tuple[int, ...]
    cells: Mapping[Region, int]
    holders: Mapping[int, Sequence[int]]

    @property
    def cell_shape(self) -> tuple[int, ...]:
        """The shape of every slice."""
        return tuple(size // count for size, count in zip(self.shape, self.parts, strict=True))

    @property
    def cell_bytes(self) -> int:
        """Bytes of every slice."""
        return math.prod(self.cell_shape) * self.dtype.itemsize

    @property
    def layout(self) -> DeviceLayout:
        """A layout that gives each rank the cell that it holds.

        Where some cells have more holders than others, it names the first holder of each.
        """
        counts = {len(ranks) for ranks in self.holders.values()}
        replicas = counts.pop() if len(counts) == 1 else 1
        cut = [axis for axis, count in enumerate(self.parts) if count > 1]
        matrix = [replicas] if replicas > 1 else []
        matrix += [self.parts[axis] for axis in cut]
        # Device axes count from the right.
        cuts = [(len(cut) - 1 - cut.index(axis),) if axis in cut else () for axis in range(len(self.parts))]
        ranks = (self.holders[cell][copy] for copy in range(replicas) for cell in sorted(self.holders))
        return DeviceLayout(tuple(matrix) or (1,), tuple(cuts), tuple(ranks))

    @property
    def replica_ids(self) -> list[int]:
        """For each rank of the layout's list, how many before it have the same cell."""
        return [place // len(self.holders) for place in range(len(self.layout.rank_list))]


def gather_slices(ranks: Sequence[Sequence[RankSlice]]) -> dict[str, SlicedTensor]:
    """Every tensor that the ranks have slices of, in the order in which they come.

    Args:
        ranks: The slices of each rank.

    Raises:
        MismatchError: The ranks disagree about a tensor, do not cover it exactly once but for replicas, or cut it into
            unequal parts; or MindSpore has no such type. All such tensors are told at once.
    """
    by_name: dict[str, list[tuple[int, RankSlice]]] = {}
    for rank, slices in enumerate(ranks):
        for one in slices:
            by_name.setdefault(one.name, []).append((rank, one))
    problems: list[Problem] = []
    tensors = {}
    for name, held in by_name.items():
        found = _gather(name, held)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            tensors[name] = found
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [Problem("further", f"{len(problems) - _MAX_PROBLEMS} tensors of this kind")]
    if problems:
        raise MismatchError(problems)
    return tensors


def _gather(name: str, slices: Sequence[tuple[int, RankSlice]]) -> SlicedTensor | Problem:
    where = f"tensor {quote_name(name)}"
    first = slices[0][1]
    if not is_encodable(name):
        return Problem(where, "a name with half a surrogate pair", "Unicode", "Rename it")
    if first.dtype.mindspore is None:
        return Problem(where, f"the type {first.dtype}, which MindSpore lacks", "a type that it has", "Use --dtype")
    for rank, one in slices:
        if (one.dtype, one.shape, one.kind) != (first.dtype, first.shape, first.kind):
            found = f"{one.kind} {one.dtype} {list(one.shape)} on rank {rank}"
            return Problem(where, found, f"{first.kind} {first.dtype} {list(first.shape)}, as on rank {slices[0][0]}")
    if len({rank for rank, _ in slices}) < len(slices):
        return Problem(where, "several slices on one rank", "one")
    regions = list(dict.fromkeys(one.region for _, one in slices))
    edges = find_edges(first.shape, regions)
    if edges is None:
        shown = ", ".join(str(list(map(list, region))) for region in regions[:4])
        return Problem(where, f"the slices {shown}{' ...' if len(regions) > 4 else ''}", "slices that cover it once")
    shapes = {region_shape(region) for region in regions}
    if len(shapes) > 1:
        shown = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        return Problem(where, f"slices of the shapes {shown}", "equal slices, as this format knows no others")
    cells = {region: index for index, region in enumerate(sorted(regions))}
    holders: dict[int, list[int]] = {}
    for rank, one in slices:
        holders.setdefault(cells[one.region], []).append(rank)
    parts = tuple(len(cuts) - 1 for cuts in edges)
    return SlicedTensor(first.dtype, first.shape, parts, cells, holders)
