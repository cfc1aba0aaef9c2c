"""The page of a split, or of an extraction."""

from __future__ import annotations

import json
from collections import Counter
from statistics import median

from ckpt_tools.pages.blocks import Block, Cell, Check, Column, Content, Fact, Names, Section, Table
from ckpt_tools.pages.heatmaps import even_top, heatmap
from ckpt_tools.pages.outputs import dropped_blocks, outcome_check, title_of, volume_section
from ckpt_tools.pages.text import count_of, number_cell, percent, percent_cell, shape_text
from ckpt_tools.reports import ExtractedLayer, SplitReport

__all__ = ["split_content"]

LITTLE = 0.5
"""A layer of which the extracted change has less than this share of the energy is pointed out."""


def split_content(report: SplitReport) -> Content:
    """What the page of a split says."""
    roles = Counter(parameter.role for parameter in report.parameters)
    parts = ", ".join(f"{count} {role}" for role, count in roles.items()) or "nothing"
    facts = [Fact("Source", report.source)]
    if report.base is not None:
        facts.append(Fact("Base", report.base))
    facts += [
        Fact("Output", f"{report.output} ({report.format})"),
        Fact("Method", report.method + (f" ({', '.join(report.families)})" if report.families else "")),
    ]
    if report.remainder is not None:
        facts.append(Fact("Remainder", report.remainder))
    if report.base_fingerprint:
        facts.append(Fact("Base fingerprint", report.base_fingerprint))
    return Content(
        title_of(report, "Split into", "Would split into"),
        (outcome_check(report), Check("Delta", f"{report.method}: {parts}"), *_extraction_checks(report.extracted)),
        tuple(facts),
        (
            Section("extracted", "Extracted layers", _extraction_blocks(report.extracted)),
            Section("parameters", "Parameters of the adapter", _parameter_blocks(report)),
            Section("config", "adapter_config.json", _config_blocks(report)),
            Section("dropped", "Dropped", dropped_blocks(report.dropped)),
            Section("left", "Left", _left_blocks(report)),
            volume_section(report),
        ),
    )


def _extraction_checks(layers: tuple[ExtractedLayer, ...]) -> list[Check]:
    if not layers:
        return []
    energies, errors = [layer.energy for layer in layers], [layer.error for layer in layers]
    worst = max(layers, key=lambda layer: layer.error)
    little = [layer for layer in layers if layer.energy < LITTLE]
    kept = f"{percent(min(energies))} to {percent(max(energies))} of the change's energy"
    kept += f"; under {percent(LITTLE)} in {count_of(len(little), 'layer')}" if little else ""
    return [
        Check("Kept", kept, not little),
        Check(
            "Error of merging back",
            f"{percent(median(errors))} of the change (median), at most {percent(worst.error)}, in {worst.name}",
        ),
    ]


def _extraction_blocks(layers: tuple[ExtractedLayer, ...]) -> tuple[Block, ...]:
    if not layers:
        return ()
    figures = [
        heatmap(
            "energy-map",
            "Energy kept, in percent, by layer and module",
            [(layer.name, layer.energy) for layer in layers],
            percent,
            top=1.0,
            note="The share of the change's sum of squares that B @ A has. Small numbers ask for a larger rank.",
        ),
        heatmap(
            "error-map",
            "Error of merging back, in percent of the change, by layer and module",
            [(layer.name, layer.error) for layer in layers],
            percent,
            top=even_top(layer.error for layer in layers),
            note="How far base + B @ A, rounded, is from the tuned weight. Large numbers lose most.",
        ),
    ]
    if len({layer.rank for layer in layers}) > 1:
        ranks = [(layer.name, float(layer.rank)) for layer in layers]
        figures.append(heatmap("rank-map", "Rank, by layer and module", ranks, lambda rank: f"{rank:.0f}"))
    columns = (
        Column("Weight"),
        Column("Rank", is_number=True),
        Column("Energy", is_number=True),
        Column("Error", is_number=True),
        Column("Equal elements", is_number=True),
        Column("|change|", is_number=True),
    )
    rows = tuple(
        (
            Cell(layer.name),
            number_cell(layer.rank, str(layer.rank)),
            percent_cell(layer.energy),
            percent_cell(layer.error),
            percent_cell(layer.equal_share),
            number_cell(layer.delta_norm),
        )
        for layer in layers
    )
    table = Table("extracted-table", "Layers whose change was extracted", columns, rows)
    return (*(figure for figure in figures if figure is not None), table)


def _parameter_blocks(report: SplitReport) -> tuple[Block, ...]:
    columns = tuple(map(Column, ("Parameter", "Role", "Shape", "Type", "Name in the source")))
    rows = tuple(
        tuple(map(Cell, (one.name, one.role, shape_text(one.shape), one.dtype, one.source_name)))
        for one in report.parameters
    )
    return (Table("parameters-table", "What the adapter holds", columns, rows),) if rows else ()


def _left_blocks(report: SplitReport) -> tuple[Block, ...]:
    return (Names(f"The base: {count_of(len(report.left), 'tensor')}", report.left),) if report.left else ()


def _config_blocks(report: SplitReport) -> tuple[Block, ...]:
    if report.config is None:
        return ()
    rows = tuple((Cell(key), Cell(json.dumps(value))) for key, value in report.config.items())
    return (Table("config-table", "The adapter's configuration", (Column("Entry"), Column("Value")), rows),)
