"""Numbers and counts as a page shows them."""

from __future__ import annotations

import math

from ckpt_tools.pages.blocks import Cell

__all__ = ["NONE", "count_of", "listed", "number_cell", "percent", "percent_cell", "shape_text", "short_number"]


NONE = "\N{EN DASH}"
"""What is shown where there is no number."""


def percent(share: float | None) -> str:
    """A share as a percentage of three digits; a dash where there is none."""
    return NONE if share is None or not math.isfinite(share) else f"{short_number(100 * share)} %"


def short_number(value: float) -> str:
    """A number in three digits, without an exponent where it fits."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent_cell(share: float | None) -> Cell:
    """A share in a table."""
    return Cell(percent(share), share)


def number_cell(value: float | None, text: str | None = None) -> Cell:
    """A number in a table."""
    if value is None:
        return Cell(NONE)
    return Cell(f"{value:.4g}" if text is None else text, value)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as people write it."""
    return " × ".join(map(str, shape)) or "scalar"  # noqa: RUF001 - the sign of multiplication is meant


def count_of(count: int, singular: str, plural: str = "") -> str:
    """So many of something."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def listed(names: list[str], most: int = 3) -> str:
    """The first of some names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
