"""A folder of adapters for a terminal: what each is, what is wrong with it, and how alike they are."""

from __future__ import annotations

from ckpt_tools.cli.common import printable
from ckpt_tools.cli.table import Column, table
from ckpt_tools.reports import AdapterSimilarity, InspectReport, ServedAdapter
from ckpt_tools.sizes import format_size

__all__ = ["served_lines"]

_MOST_PAIRS = 20


def served_lines(report: InspectReport, width: int | None, *, list_all: bool) -> list[str]:
    """The adapters, and the pairs of them: all, or those that are the least independent.

    Args:
        report: The report.
        width: Columns of the terminal, or None.
        list_all: Whether every pair has a line.
    """
    adapters = (
        Column("adapter", flexible=True),
        Column("method"),
        Column("spelling"),
        Column("layers", right=True),
        Column("rank", right=True),
        Column("scale", right=True),
        Column("targets", flexible=True),
        Column("bytes", right=True),
        Column("|delta|", right=True),
        Column("whole", right=True),
    )
    lines = table(adapters, [_adapter_row(adapter) for adapter in report.adapters], width)
    broken = [(adapter.name, problem) for adapter in report.adapters for problem in adapter.problems]
    if broken:
        lines += ["", "  what is wrong"]
        lines += [f"  {printable(name)}: {printable(problem)}" for name, problem in broken]
    pairs = sorted(report.similarities, key=lambda pair: -abs(pair.cosine or 0.0))
    shown = pairs if list_all else pairs[:_MOST_PAIRS]
    columns = (
        Column("adapter", flexible=True),
        Column("and", flexible=True),
        Column("common layers", right=True),
        Column("cosine", right=True),
        Column("most alike in", flexible=True),
        Column("cosine", right=True),
    )
    if shown:
        lines += ["", *table(columns, [_pair_row(pair) for pair in shown], width)]
    if len(shown) < len(pairs):
        lines.append(f"  and {len(pairs) - len(shown)} more pairs with smaller cosines, which --all lists")
    return lines


def _adapter_row(adapter: ServedAdapter) -> tuple[str, ...]:
    return (
        adapter.name,
        adapter.method or "unreadable",
        ", ".join(adapter.families),
        str(adapter.layers) if adapter.layers else "",
        _span(adapter.ranks),
        _span(adapter.scalings),
        ", ".join(adapter.targets),
        format_size(adapter.nbytes) if adapter.nbytes else "",
        "" if adapter.norm is None else f"{adapter.norm:.4g}",
        str(adapter.saved) if adapter.saved else "",
    )


def _span(values: tuple[float, ...]) -> str:
    if len(values) > 2:
        return f"{values[0]:g} to {values[-1]:g}"
    return ", ".join(f"{value:g}" for value in values)


def _pair_row(pair: AdapterSimilarity) -> tuple[str, ...]:
    return (
        pair.first,
        pair.other,
        str(pair.common_layers),
        "" if pair.cosine is None else f"{pair.cosine:.4f}",
        pair.closest_layer,
        "" if pair.closest_cosine is None else f"{pair.closest_cosine:.4f}",
    )
