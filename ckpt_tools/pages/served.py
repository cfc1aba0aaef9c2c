"""What the page of a folder of adapters says."""

from __future__ import annotations

from ckpt_tools.pages.blocks import Block, Cell, Check, Column, Content, Fact, Paragraph, Section, Table
from ckpt_tools.pages.similarities import similarity_figure
from ckpt_tools.pages.text import count_of, listed, number_cell
from ckpt_tools.reports import AdapterSimilarity, InspectReport, ServedAdapter
from ckpt_tools.sizes import format_size

__all__ = ["served_content"]


def served_content(report: InspectReport) -> Content:
    """The adapters of a folder, what is wrong with any, and how alike they are."""
    broken = [adapter.name for adapter in report.adapters if adapter.problems]
    fine = "all can be folded and compared"
    check = Check("Adapters", fine if not broken else f"something is wrong with {listed(broken)}", not broken)
    problems = [(adapter.name, text) for adapter in report.adapters for text in adapter.problems]
    return Content(
        report.path,
        (check,),
        (
            Fact("Path", report.path),
            Fact("Adapters", f"{count_of(len(report.adapters), 'adapter')}, {_bytes(report.adapters)}"),
        ),
        (
            Section("problems", "What is wrong", (_problems(problems),) if problems else ()),
            Section("similarities", "How alike they are", _similarity_blocks(report)),
            Section("adapters", "Adapters", (_adapters(report.adapters),)),
        ),
    )


def _bytes(adapters: tuple[ServedAdapter, ...]) -> str:
    return format_size(sum(adapter.nbytes for adapter in adapters))


def _problems(problems: list[tuple[str, str]]) -> Table:
    rows = tuple((Cell(name), Cell(text)) for name, text in problems)
    return Table("problems-table", "What is wrong with which adapter", (Column("Adapter"), Column("What")), rows)


def _similarity_blocks(report: InspectReport) -> tuple[Block, ...]:
    if not report.similarities:
        return (Paragraph("There are no two adapters that could be compared."),)
    figure = similarity_figure([adapter.name for adapter in report.adapters], report.similarities)
    columns = (
        Column("Adapter"),
        Column("And"),
        Column("Common layers", is_number=True),
        Column("Cosine", is_number=True),
        Column("Most alike in"),
        Column("Cosine there", is_number=True),
    )
    table = Table("similarities-table", "All pairs", columns, tuple(map(_pair_row, report.similarities)))
    return (table,) if figure is None else (figure, table)


def _pair_row(pair: AdapterSimilarity) -> tuple[Cell, ...]:
    return (
        Cell(pair.first),
        Cell(pair.other),
        number_cell(pair.common_layers, str(pair.common_layers)),
        number_cell(pair.cosine),
        Cell(pair.closest_layer),
        number_cell(pair.closest_cosine),
    )


def _adapters(adapters: tuple[ServedAdapter, ...]) -> Table:
    columns = (
        Column("Adapter"),
        Column("Method"),
        Column("Spelling"),
        Column("Layers", is_number=True),
        Column("Rank", is_number=True),
        Column("Scale", is_number=True),
        Column("Targets"),
        Column("|delta|", is_number=True),
        Column("Bytes", is_number=True),
        Column("Saved whole", is_number=True),
        Column("Base"),
    )
    return Table("adapters-table", "The adapters", columns, tuple(map(_adapter_row, adapters)))


def _adapter_row(adapter: ServedAdapter) -> tuple[Cell, ...]:
    return (
        Cell(adapter.name),
        Cell(adapter.method or "unreadable"),
        Cell(", ".join(adapter.families)),
        number_cell(adapter.layers, str(adapter.layers)),
        number_cell(max(adapter.ranks, default=None), ", ".join(map(str, adapter.ranks))),
        number_cell(max(adapter.scalings, default=None), ", ".join(f"{scale:g}" for scale in adapter.scalings)),
        Cell(", ".join(adapter.targets)),
        number_cell(adapter.norm),
        number_cell(adapter.nbytes, format_size(adapter.nbytes)),
        number_cell(adapter.saved, str(adapter.saved)),
        Cell(adapter.base),
    )
