"""The page of a combination of adapters."""

from __future__ import annotations

from statistics import median

from ckpt_tools.pages.blocks import Block, Cell, Check, Column, Content, Fact, Section, Table
from ckpt_tools.pages.heatmaps import heatmap
from ckpt_tools.pages.outputs import dropped_blocks, outcome_check, title_of, volume_section
from ckpt_tools.pages.text import count_of, number_cell, percent, percent_cell, short_number
from ckpt_tools.reports import CombinedLayer, CombineReport

__all__ = ["combine_content"]

_LOSSY = 0.5
"""A loss of more than this share of a layer's norm is pointed out."""


def combine_content(report: CombineReport) -> Content:
    """What the page of a combination says."""
    return Content(
        title_of(report, "Combined into", "Would combine into"),
        (outcome_check(report), *_checks(report)),
        (
            *(Fact("Adapter", _adapter(report, number)) for number in range(len(report.adapters))),
            Fact("Method", report.how),
            Fact("Output", f"{report.output} ({report.format})"),
            *((Fact("Base fingerprint", report.base_fingerprint),) if report.base_fingerprint else ()),
        ),
        (
            Section("layers", "Layers", _layer_blocks(report)),
            Section("dropped", "Dropped", dropped_blocks(report.dropped)),
            volume_section(report),
        ),
    )


def _adapter(report: CombineReport, number: int) -> str:
    adapter = report.adapters[number]
    layers = [layer for layer in report.layers if number in layer.adapters]
    ranks = sorted({layer.ranks[layer.adapters.index(number)] for layer in layers})
    text = (
        f"{adapter.path} ({', '.join(adapter.families)}): weight {adapter.weight:g}, {count_of(len(layers), 'layer')}, "
    )
    text += f"rank {', '.join(map(str, ranks)) or 'none'}; scale from {adapter.config or 'the command line'}"
    return f"{text}; names {adapter.names}" if adapter.names else text


def _checks(report: CombineReport) -> list[Check]:
    shared = sum(len(layer.adapters) > 1 for layer in report.layers)
    checks = [Check("Layers", f"{count_of(len(report.layers), 'layer')}, {shared} of them in several adapters")]
    errors = [layer.relative_error for layer in report.layers]
    text = f"rank and type lose {percent(median(errors))} of a layer's norm (median), at most {percent(max(errors))}"
    checks.append(Check("Loss", text, max(errors) <= _LOSSY))
    unfinished = [layer.name for layer in report.layers if not layer.converged]
    if unfinished:
        text = f"{count_of(len(unfinished), 'layer')} did not come to rest, {unfinished[0]} among them"
        checks.append(Check("Decomposition", text, is_fine=False))
    return checks


def _layer_blocks(report: CombineReport) -> tuple[Block, ...]:
    figures = (
        heatmap(
            "loss-map",
            "What rank and type lose of a layer's norm, in percent, by layer and module",
            [(layer.name, layer.relative_error) for layer in report.layers],
            percent,
            top=1.0,
            note="The distance of B @ A, as it is stored, from what the method gives.",
        ),
        heatmap(
            "rank-map",
            "Rank by layer and module",
            [(layer.name, float(layer.rank)) for layer in report.layers],
            short_number,
        ),
    )
    columns = (
        Column("Layer"),
        Column("Kind"),
        Column("Adapters"),
        Column("Ranks before"),
        Column("Rank", is_number=True),
        Column("Energy kept", is_number=True),
        Column("Loss", is_number=True),
        Column("From the plain sum", is_number=True),
        Column("|delta|", is_number=True),
    )
    table = Table("layers-table", "All layers", columns, tuple(map(_row, report.layers)))
    return (*(figure for figure in figures if figure is not None), table)


def _row(layer: CombinedLayer) -> tuple[Cell, ...]:
    return (
        Cell(layer.name),
        Cell(layer.kind),
        Cell(", ".join(str(number + 1) for number in layer.adapters)),
        Cell(", ".join(map(str, layer.ranks))),
        number_cell(layer.rank, str(layer.rank)),
        percent_cell(layer.energy),
        percent_cell(layer.relative_error),
        percent_cell(layer.distance_from_sum),
        number_cell(layer.norm),
    )
