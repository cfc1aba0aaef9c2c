"""A layout drawn: the device matrix as a grid of ranks, and the tensor cut into the slices that they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt_tools.layout.model import Layout
from ckpt_tools.layout.slices import regions_of
from ckpt_tools.pages.blocks import Figure
from ckpt_tools.pages.colours import TINTS
from ckpt_tools.pages.drawing import Mark, add_box, add_canvas, add_text, draw
from ckpt_tools.pages.text import count_of, shape_text
from ckpt_tools.tensors.lazy import Region, full_region

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["layout_figure", "ranks_text"]

_CELL_WIDTH, _CELL_HEIGHT, _HEAD, _PAD = 38, 22, 26, 10
_TENSOR_SIDE = 260
_MAX_ACROSS, _MAX_DOWN, _MAX_SLICES = 16, 16, 64
_LETTER = 6.6


@dataclass(frozen=True, slots=True)
class _Slice:
    region: Region
    ranks: tuple[int, ...]


def layout_figure(key: str, title: str, layout: Layout, shape: tuple[int, ...], first_rank: int = 0) -> Figure:
    """The device matrix of a layout and what each rank holds of a tensor.

    Args:
        key: The figure's name among all of its page.
        title: Which tensor it is, or what else to call it.
        layout: How the tensor is cut.
        shape: The whole tensor's shape. Of more than two axes the first two that are cut are drawn.
        first_rank: The first rank of the tensor's stage.

    Raises:
        MismatchError: The layout cannot be one of a tensor of this shape.
    """
    parts, regions = regions_of(layout, shape)
    slices = _slices(regions, shape, first_rank)
    tint_of = {rank: number % TINTS for number, one in enumerate(slices) for rank in one.ranks}
    across, down, axes_note = _device_grid(layout)
    columns, rows = min(across, _MAX_ACROSS), min(down, _MAX_DOWN)
    drawn = _drawn_axes(shape, parts)
    sides = _sides(shape, drawn)
    left = _PAD * 2 + max(_CELL_WIDTH * columns, 130) + 40
    width = max(left + sides[1] + _PAD + 60, 360)
    height = _HEAD * 2 + max(_CELL_HEIGHT * rows, sides[0]) + _PAD
    marks = {f"slice-{number}": _mark(one) for number, one in enumerate(slices[:_MAX_SLICES])}

    def paint(canvas: Canvas) -> None:
        axes = add_canvas(canvas)
        add_text(axes, _PAD, 12, "Device matrix", align="left")
        add_text(axes, _PAD, 30, axes_note, align="left", colour="muted", size=10)
        for row in range(rows):
            for column in range(columns):
                rank = first_rank + row * across + column
                corner = (_PAD + _CELL_WIDTH * column, _HEAD + 18 + _CELL_HEIGHT * row)
                add_box(axes, corner, (_CELL_WIDTH, _CELL_HEIGHT), f"tint-{tint_of[rank]}", "muted")
                add_text(axes, corner[0] + _CELL_WIDTH / 2, corner[1] + _CELL_HEIGHT / 2, str(rank))
        add_text(axes, left, 12, f"Tensor {shape_text(shape)}", align="left")
        add_text(axes, left, 30, _axes_text(drawn, shape), align="left", colour="muted", size=10)
        _paint_slices(axes, slices[:_MAX_SLICES], shape, drawn, (left, _HEAD + 18), sides)

    cut = " × ".join(map(str, parts)) or "1"  # noqa: RUF001 - the sign of multiplication is meant
    copies = layout.devices // len(slices)
    words = (
        f"A device matrix of {axes_note}, ranks {first_rank} to {first_rank + layout.devices - 1}. The tensor of shape "
        f"{shape_text(shape)} is cut into {cut} parts; each is held by {count_of(copies, 'rank')}. "
        + " ".join(f"Rank {ranks_text(one.ranks)}: {_region_text(one.region)}." for one in slices[:_MAX_SLICES])
    )
    notes = []
    if columns * rows < layout.devices:
        notes.append(f"The first {_MAX_ACROSS} by {_MAX_DOWN} devices at most are drawn, of {layout.devices}.")
    if len(slices) > _MAX_SLICES:
        notes.append(f"The first {_MAX_SLICES} slices are drawn, of {len(slices)}.")
    if copies > 1:
        notes.append(f"Each slice lies on {copies} ranks, under the same colour.")
    return Figure(key, title, words, draw(key, width, height, paint, marks), " ".join(notes))


def ranks_text(ranks: tuple[int, ...]) -> str:
    """Ranks in a few letters: `0-3`, `0, 4`, `0, 4, ... 60`."""
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"{ranks[0]}-{ranks[-1]}"
    if len(ranks) > 4:
        return f"{ranks[0]}, {ranks[1]}, ... {ranks[-1]}"
    return ", ".join(map(str, ranks))


def _slices(regions: tuple[Region | None, ...], shape: tuple[int, ...], first_rank: int) -> list[_Slice]:
    holders: dict[Region, list[int]] = {}
    for rank, region in enumerate(regions, start=first_rank):
        holders.setdefault(full_region(shape) if region is None else region, []).append(rank)
    return [_Slice(region, tuple(ranks)) for region, ranks in sorted(holders.items())]


def _device_grid(layout: Layout) -> tuple[int, int, str]:
    """Columns and rows of the grid, and the matrix in words: its last axis lies across, the others down."""
    matrix = layout.device_matrix or (1,)
    text = " × ".join(map(str, matrix))  # noqa: RUF001 - the sign of multiplication is meant
    return matrix[-1], math.prod(matrix[:-1]), text


def _drawn_axes(shape: tuple[int, ...], parts: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) <= 2:
        return tuple(range(len(shape)))
    cut = [axis for axis, count in enumerate(parts) if count > 1][:2]
    rest = [axis for axis in range(len(shape) - 1, -1, -1) if axis not in cut]
    return tuple(sorted((*cut, *rest[: 2 - len(cut)])))


def _sides(shape: tuple[int, ...], drawn: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the tensor's rectangle: its proportions, but no side so short that nothing fits."""
    if not drawn:
        return _CELL_HEIGHT * 2, _CELL_WIDTH * 2
    rows, columns = (shape[drawn[0]], shape[drawn[1]]) if len(drawn) == 2 else (shape[drawn[0]], 0)
    longest = max(rows, columns, 1)
    return (
        max(110, round(_TENSOR_SIDE * rows / longest)),
        max(110, round(_TENSOR_SIDE * columns / longest)),
    )


def _axes_text(drawn: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if not drawn:
        return "a scalar"
    words = f"axis {drawn[0]} down" + (f", axis {drawn[1]} across" if len(drawn) == 2 else "")
    return words + (f" (of {len(shape)})" if len(drawn) < len(shape) else "")


def _paint_slices(
    axes: Axes,
    slices: list[_Slice],
    shape: tuple[int, ...],
    drawn: tuple[int, ...],
    corner: tuple[float, float],
    sides: tuple[int, int],
) -> None:
    seen = set()
    for number, one in enumerate(slices):
        spans = [(0.0, 1.0), (0.0, 1.0)]
        for side, axis in enumerate(drawn):
            start, stop = one.region[axis]
            length = max(shape[axis], 1)
            spans[side] = (start / length, stop / length)
        (top, bottom), (left, right) = spans
        at = (corner[0] + sides[1] * left, corner[1] + sides[0] * top)
        size = (sides[1] * (right - left), sides[0] * (bottom - top))
        if at in seen:
            continue  # behind another, along an axis that is not drawn
        seen.add(at)
        add_box(axes, at, size, f"tint-{number % TINTS}", "ink", gid=f"slice-{number}")
        text = ranks_text(one.ranks)
        if _LETTER * len(text) <= size[0] and size[1] >= 12:
            add_text(axes, at[0] + size[0] / 2, at[1] + size[1] / 2, text)


def _mark(one: _Slice) -> Mark:
    ranks = ",".join(map(str, one.ranks))
    return Mark(f"rank {ranks_text(one.ranks)}: {_region_text(one.region)}", {"ranks": ranks})


def _region_text(region: Region) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in region) + "]"
