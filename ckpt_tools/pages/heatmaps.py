"""Heatmaps: a number of each weight, by layer (rows) and module (columns)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from ckpt_tools.pages.blocks import Figure
from ckpt_tools.pages.colours import HEAT_STEPS
from ckpt_tools.pages.drawing import Mark, add_box, add_canvas, add_text, draw
from ckpt_tools.pages.places import place_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["even_top", "heatmap"]

_ROW, _HEAD, _LEGEND, _PAD = 18, 40, 34, 8
_LETTER = 6.6  # pixels, of the widest usual sans-serif at 11 px
_MAX_ROWS, _MAX_COLUMNS = 200, 40
_NARROWEST, _WIDEST = 54, 130


@dataclass(frozen=True, slots=True)
class _Grid:
    """Numbers in their places.

    Attributes:
        rows: The rows' labels.
        columns: The columns' labels.
        cells: (row, column) to the names of the tensors there and their numbers.
        others: How many tensors have no place.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], list[tuple[str, float]]]
    others: int


def even_top(numbers: Iterable[float | None]) -> float | None:
    """The `top` of a heatmap in which what is even has the middle of the scale, and does not look like an alarm.

    Args:
        numbers: What the heatmap shows; what is None or not finite does not count.
    """
    finite = [number for number in numbers if number is not None and math.isfinite(number)]
    return max(*finite, 2 * median(finite)) if finite else None


def heatmap(
    key: str,
    title: str,
    numbers: Iterable[tuple[str, float | None]],
    show: Callable[[float], str],
    *,
    top: float | None = None,
    note: str = "",
) -> Figure | None:
    """A heatmap of numbers, none of them below zero; None where fewer than two are in numbered layers.

    Where several tensors share a place, as the experts of a layer do, it shows the largest.

    Args:
        key: The figure's name among all of its page.
        title: What the numbers are, with their unit.
        numbers: The name and the number of each tensor; what is None or not finite is left out.
        show: The text of a number.
        top: What the last colour of the scale stands for, finite; by default the largest number.
        note: How to read it.
    """
    grid = _grid(numbers)
    if len(grid.cells) < 2:
        return None
    largest = {place: max(cell, key=lambda entry: entry[1]) for place, cell in grid.cells.items()}
    highest = max(largest.values(), key=lambda entry: entry[1])
    lowest = min(largest.values(), key=lambda entry: entry[1])
    top = (top if top is not None else highest[1]) or 1.0
    left = _PAD + round(_LETTER * max(len(row) for row in grid.rows)) + _PAD
    longest = max(len(part) for column in grid.columns for part in _halves(column))
    widths = min(_WIDEST, max(_NARROWEST, math.ceil(_LETTER * (longest + 1))))
    width = max(left + widths * len(grid.columns) + _PAD, left + 330)
    height = _LEGEND + _HEAD + _ROW * len(grid.rows) + _PAD
    marks = {f"cell-{row}-{column}": _mark(grid, row, column, show) for row, column in grid.cells}

    def paint(canvas: Canvas) -> None:
        axes = add_canvas(canvas)
        _paint_legend(axes, left, top, show)
        for column, label in enumerate(grid.columns):
            upper, lower = _halves(label)
            middle = left + widths * (column + 0.5)
            add_text(axes, middle, _LEGEND + 10, _cut(upper, widths), colour="muted")
            add_text(axes, middle, _LEGEND + 26, _cut(lower, widths))
        for row, label in enumerate(grid.rows):
            add_text(axes, left - _PAD, _LEGEND + _HEAD + _ROW * (row + 0.5), label, align="right")
            for column in range(len(grid.columns)):
                corner = (left + widths * column, _LEGEND + _HEAD + _ROW * row)
                entry = largest.get((row, column))
                _paint_cell(axes, corner, widths, entry and entry[1], top, show, f"cell-{row}-{column}")

    shared = any(len(cell) > 1 for cell in grid.cells.values())
    words = [f"{len(grid.rows)} rows of layers, {len(grid.columns)} columns of modules."]
    words.append(f"From {show(lowest[1])}, {lowest[0]}, to {show(highest[1])}, {highest[0]}.")
    words.append("All numbers are in the table below.")
    notes = [note] if note else []
    if shared:
        notes.append("Where several tensors share a cell, it shows the largest.")
    if grid.others:
        notes.append(f"Not in the picture, as they are in no numbered layer or beyond its size: {grid.others}.")
    return Figure(key, title, " ".join(words), draw(key, width, height, paint, marks), " ".join(notes))


def _grid(numbers: Iterable[tuple[str, float | None]]) -> _Grid:
    placed, others = [], 0
    for name, number in numbers:
        if number is None or not math.isfinite(number):
            continue
        place = place_of(name)
        if place is None:
            others += 1
        else:
            placed.append((place, name, number))
    stacks = list(dict.fromkeys(place.stack for place, _, _ in placed))
    layers = sorted({(stacks.index(place.stack), place.layer) for place, _, _ in placed})[:_MAX_ROWS]
    columns = list(dict.fromkeys(place.module for place, _, _ in placed))[:_MAX_COLUMNS]
    row_of = {layer: row for row, layer in enumerate(layers)}
    column_of = {column: number for number, column in enumerate(columns)}
    cells: dict[tuple[int, int], list[tuple[str, float]]] = {}
    for place, name, number in placed:
        row, column = row_of.get((stacks.index(place.stack), place.layer)), column_of.get(place.module)
        if row is None or column is None:
            others += 1
        else:
            cells.setdefault((row, column), []).append((name, number))
    labels = [f"{stacks[stack]}.{layer}" if len(stacks) > 1 else str(layer) for stack, layer in layers]
    return _Grid(tuple(labels), tuple(columns), cells, others)


def _mark(grid: _Grid, row: int, column: int, show: Callable[[float], str]) -> Mark:
    cell = grid.cells[row, column]
    name, number = max(cell, key=lambda entry: entry[1])
    more = f", the largest of {len(cell)}" if len(cell) > 1 else ""
    return Mark(f"{name}: {show(number)}{more}", {"name": name, "value": repr(number)})


def _step(number: float, top: float) -> int:
    return min(HEAT_STEPS - 1, max(0, int(HEAT_STEPS * number / top)))


def _paint_cell(
    axes: Axes,
    corner: tuple[float, float],
    width: int,
    number: float | None,
    top: float,
    show: Callable[[float], str],
    gid: str,
) -> None:
    middle = corner[0] + width / 2, corner[1] + _ROW / 2
    if number is None:
        add_text(axes, *middle, "·", colour="muted")
        return
    step = _step(number, top)
    add_box(axes, corner, (width - 1, _ROW - 1), f"heat-{step}", gid=gid)
    text = show(number).removesuffix(" %")
    if _LETTER * len(text) <= width:
        add_text(axes, *middle, text, colour=f"heat-ink-{step}")


def _paint_legend(axes: Axes, left: int, top: float, show: Callable[[float], str]) -> None:
    width = 24
    add_text(axes, left, 12, "0", align="left")
    start = left + 14
    for step in range(HEAT_STEPS):
        add_box(axes, (start + width * step, 5), (width, 14), f"heat-{step}")
    add_text(axes, start + width * HEAT_STEPS + 6, 12, show(top), align="left")


def _halves(label: str) -> tuple[str, str]:
    upper, _, lower = label.rpartition(".")
    return upper, lower


def _cut(text: str, width: int) -> str:
    most = int(width / _LETTER)
    return text if len(text) <= most else f"{text[: most - 1]}…"
