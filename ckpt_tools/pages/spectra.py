"""Singular values of an adapter's matrices: how many of their directions do the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt_tools.pages.blocks import Block, Cell, Column, Figure, Table
from ckpt_tools.pages.colours import colour_of
from ckpt_tools.pages.drawing import draw
from ckpt_tools.pages.heatmaps import heatmap
from ckpt_tools.pages.places import place_of
from ckpt_tools.pages.text import number_cell
from ckpt_tools.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["Spectrum", "spectra_blocks"]

_PANEL_WIDTH, _PANEL_HEIGHT, _ACROSS, _MARGIN = 230, 170, 3, 56
_MAX_PANELS, _MAX_LINES = 12, 100
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of one matrix, such as scaling * B @ A.

    Attributes:
        name: The weight or layer that it belongs to.
        values: The singular values, the largest first.
        effective_rank: How many directions it has in effect.
    """

    name: str
    values: tuple[float, ...]
    effective_rank: float


def spectra_blocks(spectra: Sequence[Spectrum], key: str = "spectra") -> tuple[Block, ...]:
    """Pictures and a table of singular values: lines by module, a heatmap of effective ranks, and all numbers.

    Args:
        spectra: The matrices; those without values are in the table alone.
        key: What the names of the blocks among all of the page begin with.
    """
    ranks = heatmap(
        f"{key}-ranks",
        "Effective rank by layer and module",
        [(one.name, one.effective_rank) for one in spectra],
        lambda value: f"{value:.3g}",
        note="Far below the rank of the adapter: most of its directions do nothing, and a smaller rank would do.",
    )
    blocks = [ranks, _lines(f"{key}-lines", spectra)]
    return (*(block for block in blocks if block is not None), _table(f"{key}-table", spectra))


def _lines(key: str, spectra: Sequence[Spectrum]) -> Figure | None:
    panels: dict[str, list[Spectrum]] = {}
    for one in spectra:
        if one.values and one.values[0] > 0:
            place = place_of(one.name)
            panels.setdefault(place.module if place else "in no numbered layer", []).append(one)
    if not panels:
        return None
    shown = list(panels.items())[:_MAX_PANELS]
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    width, height = _PANEL_WIDTH * across + 16, _PANEL_HEIGHT * down + 20
    lowest = max(_FLOOR, min(value / one.values[0] for _, group in shown for one in group for value in one.values))

    def paint(canvas: Canvas) -> None:
        for number, (module, group) in enumerate(shown):
            left = _MARGIN + _PANEL_WIDTH * (number % across)
            bottom = height - _PANEL_HEIGHT * (number // across + 1) + 22
            axes = canvas.add_axes(
                (left / width, bottom / height, (_PANEL_WIDTH - _MARGIN) / width, (_PANEL_HEIGHT - 50) / height)
            )
            _paint_panel(axes, module, group[:_MAX_LINES], lowest / 1.5)

    left_out = len(panels) - len(shown) + sum(len(group) > _MAX_LINES for _, group in shown)
    more = " Not everything is drawn; the table has all numbers." if left_out else ""
    return Figure(
        key,
        "Singular values by module, each as a share of the largest",
        f"{len(shown)} panels, one for each module, with a line for each layer: singular values, the largest first, on "
        "a logarithmic scale. All numbers are in the table below.",
        draw(key, width, height, paint),
        f"A line for each layer. One that falls steeply has few directions that matter.{more}",
    )


def _paint_panel(axes: Axes, module: str, group: Sequence[Spectrum], lowest: float) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    for one in group:
        heights = [max(value / one.values[0], _FLOOR) for value in one.values]
        axes.plot(range(1, len(heights) + 1), heights, color=colour_of("accent"), linewidth=1, alpha=0.6)
    axes.set_yscale("log")
    axes.set_ylim(lowest, 1.3)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(lambda value, position: "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(True, linewidth=0.5)
    axes.set_title(printable(module), fontsize=11, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)


def _table(key: str, spectra: Sequence[Spectrum]) -> Table:
    columns = ("Weight", "Values", "Largest", "Smallest", "Effective rank")
    rows = tuple(
        (
            Cell(one.name),
            number_cell(len(one.values), str(len(one.values))),
            number_cell(one.values[0] if one.values else None),
            number_cell(one.values[-1] if one.values else None),
            number_cell(one.effective_rank),
        )
        for one in spectra
    )
    return Table(key, "Singular values", tuple(Column(title, title != "Weight") for title in columns), rows)
