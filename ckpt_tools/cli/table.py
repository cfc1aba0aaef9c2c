"""Tables as wide as the terminal, and as their content where there is none."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tools.cli.common import printable

__all__ = ["Column", "elide", "output_width", "shape_text", "table"]

_GAP = "  "
_DOTS = "..."
_NARROWEST = 16


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: What stands above it.
        right: Whether it is aligned to the right, as numbers are.
        flexible: Whether its texts may be cut where the terminal is too narrow.
    """

    title: str
    right: bool = False
    flexible: bool = False


def output_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none, and lines may be of any length."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, 40)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None, indent: str = "  ") -> list[str]:
    """Lines of a table. A column of empty texts is left out.

    Args:
        columns: The columns.
        rows: A text for each column; what cannot be printed in it is escaped.
        width: Columns of the terminal, or None.
        indent: What each line begins with.
    """
    texts = [[printable(text) for text in row] for row in rows]
    used = [number for number in range(len(columns)) if any(row[number] for row in texts)]
    if not used:
        return []
    columns = [columns[number] for number in used]
    texts = [[row[number] for number in used] for row in texts]
    heads = [column.title for column in columns]
    widths = [max(_cells(row[number]) for row in [heads, *texts]) for number in range(len(columns))]
    if width is not None:
        widths = _fitted(columns, widths, width - len(indent) - len(_GAP) * (len(columns) - 1))
    return [indent + _line(row, columns, widths) for row in [heads, *texts]]


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as numpy writes it, but for one axis."""
    return f"({', '.join(map(str, shape))})"


def elide(text: str, cells: int) -> str:
    """A text in so many cells of a terminal: cut near its beginning, as names differ at their ends."""
    if _cells(text) <= cells:
        return text
    kept = max(cells - len(_DOTS), 2)
    head, tail = text[: kept // 5], text[len(text) - (kept - kept // 5) :]
    while tail and _cells(head) + _cells(tail) > kept:
        tail = tail[1:]
    return f"{head}{_DOTS}{tail}"


def _fitted(columns: Sequence[Column], widths: list[int], room: int) -> list[int]:
    """Widths that fit: flexible columns give way, the widest first."""
    widths = list(widths)
    flexible = [number for number, column in enumerate(columns) if column.flexible]
    while sum(widths) > room:
        number = max(flexible, key=lambda number: widths[number], default=None)
        if number is None or widths[number] <= _NARROWEST:
            break
        widths[number] -= 1
    return widths


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = []
    for text, column, width in zip(row, columns, widths, strict=True):
        shown = elide(text, width) if column.flexible else text
        room = " " * (width - _cells(shown))
        parts.append(room + shown if column.right else shown + room)
    return _GAP.join(parts).rstrip()


def _cells(text: str) -> int:
    """Cells that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
