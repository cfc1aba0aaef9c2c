"""What a page is made of: facts, with nothing of HTML in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

__all__ = [
    "Block",
    "Cell",
    "Check",
    "Choice",
    "Column",
    "Content",
    "Drawing",
    "Fact",
    "Figure",
    "Names",
    "Paragraph",
    "Section",
    "Table",
]


@dataclass(frozen=True, slots=True)
class Fact:
    """A line at the head of a page: what it is about, and what is so."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was looked at for the reader.

    Attributes:
        label: What was looked at.
        text: What was found.
        is_fine: Whether nobody need look further.
    """

    label: str
    text: str
    is_fine: bool = True


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; one of numbers is set flush right."""

    title: str
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows.
        order: What it is sorted by; None for its text, or, in a column of numbers, for behind all of them.
    """

    text: str
    order: float | None = None


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be searched and sorted.

    Attributes:
        key: Its name among all of the page: letters, digits and hyphens.
        caption: What it shows.
        columns: Its columns; the first names the row.
        rows: A cell for each column.
    """

    kind: ClassVar[str] = "table"
    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Names:
    """Names that are unfolded on demand."""

    kind: ClassVar[str] = "names"
    title: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A static SVG to be put into a page.

    Attributes:
        body: The elements in the `svg` element. Markup: whoever makes one has escaped the names in it.
        rules: Class name to CSS declarations, which the page's style sheet has to have.
        width: In CSS pixels.
        height: In CSS pixels.
    """

    body: str
    rules: Mapping[str, str] = field(hash=False)
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with what has to be said about it.

    Attributes:
        key: Its name among all of the page: letters, digits and hyphens.
        title: What it shows.
        description: The same and what can be seen in it, for who does not see it.
        drawing: The picture.
        note: How to read it.
    """

    kind: ClassVar[str] = "figure"
    key: str
    title: str
    description: str
    drawing: Drawing
    note: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Blocks of which the reader sees those of one option at a time.

    Attributes:
        key: Its name among all of the page: letters, digits and hyphens.
        label: What is chosen.
        options: The name of each, and what it shows.
    """

    kind: ClassVar[str] = "choice"
    key: str
    label: str
    options: tuple[tuple[str, tuple[Block, ...]], ...]


Block: TypeAlias = Paragraph | Table | Names | Figure | Choice


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        key: Its name among all of the page: letters, digits and hyphens.
        title: The heading.
        blocks: What it shows; a section without any is left out.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """What a page says of one report.

    Attributes:
        title: What was done.
        checks: What was looked at for the reader, beside the report's warnings.
        facts: The inputs, the output, and what decides the result.
        sections: All that there is to it.
    """

    title: str
    checks: tuple[Check, ...]
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
