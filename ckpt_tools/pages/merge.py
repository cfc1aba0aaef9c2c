"""The page of a merge."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

from ckpt_tools.pages.blocks import Block, Cell, Check, Column, Content, Fact, Names, Section, Table
from ckpt_tools.pages.heatmaps import even_top, heatmap
from ckpt_tools.pages.outputs import dropped_blocks, outcome_check, title_of, volume_section
from ckpt_tools.pages.text import count_of, listed, number_cell, percent, percent_cell, shape_text
from ckpt_tools.reports import AdapterReport, FoldedWeight, MergeReport

__all__ = ["merge_content"]

FAR = 10
"""A weight whose relative delta is so many times the median is pointed out."""

SWAMPED = 0.9
"""A weight of which rounding left more than this share unchanged is pointed out."""


def merge_content(report: MergeReport) -> Content:
    """What the page of a merge says."""
    folded = [weight for weight in report.weights if any(use.kind != "replaced" for use in weight.adapters)]
    replaced = len(report.weights) - len(folded)
    changed = count_of(len(folded), "weight") + f" folded, of {count_of(_total(report), 'tensor')}"
    changed += f"; {replaced} replaced" if replaced else ""
    return Content(
        title_of(report, "Merged into", "Would merge into"),
        (outcome_check(report, report.ranks), Check("Changed", changed), *_measured(folded), *_dropped(report)),
        (
            Fact("Base", report.base),
            *(fact for adapter in report.adapters for fact in _adapter_facts(adapter, report)),
            *((Fact("Combined by", report.how),) if report.how != "cat" else ()),
            Fact("Output", f"{report.output} ({report.format})"),
            Fact("Base fingerprint", report.base_fingerprint),
        ),
        (
            Section("delta", "Size of the update", _delta_blocks(folded)),
            Section("weights", "All changed weights", (_weights_table(report.weights),) if report.weights else ()),
            Section("dropped", "Dropped", dropped_blocks(report.dropped)),
            Section("kept", "Copied and cast", _kept_blocks(report)),
            volume_section(report),
        ),
    )


def _total(report: MergeReport) -> int:
    return len(report.weights) + len(report.copied) + len(report.cast)


def _measured(folded: list[FoldedWeight]) -> list[Check]:
    measured = [(weight.relative_delta, weight.name) for weight in folded if weight.relative_delta is not None]
    odd = [name for delta, name in measured if not math.isfinite(delta)]
    checks = []
    if odd:
        text = f"the update of {count_of(len(odd), 'weight')} has NaN or Inf: {listed(odd)}"
        checks.append(Check("Not finite", text, is_fine=False))
    deltas = [(delta, name) for delta, name in measured if math.isfinite(delta)]
    if not deltas:
        return checks
    sizes = [delta for delta, _ in deltas]
    middle, (largest, where) = median(sizes), max(deltas)
    text = f"|delta| / |weight| {percent(min(sizes))} to {percent(largest)}, median {percent(middle)}"
    far = [name for delta, name in deltas if middle and delta > FAR * middle]
    if far:
        text += f"; {count_of(len(far), 'weight')} over {FAR} times the median, {where} most"
    checks.append(Check("Size of the update", text, not far))
    idle = [weight.name for weight in folded if weight.delta_norm == 0]
    if idle:
        text = f"{count_of(len(idle), 'weight')} folded without any change, the update being zero: {listed(idle)}"
        checks.append(Check("Idle", text, is_fine=False))
    shares = [(weight.unchanged_share, weight.name) for weight in folded if weight.unchanged_share is not None]
    swamped = [share for share, _ in shares if share > SWAMPED]
    if shares:
        text = f"left {percent(median(share for share, _ in shares))} of the elements unchanged (median), "
        text += f"at most {percent(max(shares)[0])}, in {max(shares)[1]}"
        if swamped:
            text += f"; over {percent(SWAMPED)} in {count_of(len(swamped), 'weight')}, where --dtype fp32 keeps more"
        checks.append(Check("Rounding", text, not swamped))
    return checks


def _dropped(report: MergeReport) -> list[Check]:
    reasons = Counter(entry.reason for entry in report.dropped)
    text = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "nothing"
    return [Check("Dropped", text)]


def _adapter_facts(adapter: AdapterReport, report: MergeReport) -> list[Fact]:
    uses = [use for weight in report.weights for use in weight.adapters if use.adapter == adapter.path]
    scalings = sorted({use.scaling for use in uses if use.scaling is not None})
    alphas = sorted({use.alpha for use in uses if use.scaling is not None and use.alpha is not None})
    ranks = sorted({use.rank for use in uses if use.scaling is not None and use.rank is not None})
    name = adapter.path if adapter.path != report.base else "in the base's file"
    facts = [Fact("Adapter", f"{name} ({', '.join(adapter.families) or 'plain weights'})")]
    if scalings:
        origin = adapter.config if alphas and adapter.config else "the command line"
        alpha = f"alpha {_values(alphas)}, " if alphas else ""
        weight = f"; weight {adapter.weight:g}" if adapter.weight != 1 else ""
        facts.append(Fact("Scale", f"{_values(scalings)}: {alpha}rank {_values(ranks)}; from {origin}{weight}"))
    if adapter.names:
        facts.append(Fact("Names", adapter.names))
    return facts


def _values(values: list[int] | list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


def _delta_blocks(folded: list[FoldedWeight]) -> tuple[Block, ...]:
    figures = (
        heatmap(
            "delta-map",
            "|delta| / |weight| in percent, by layer and module",
            [(weight.name, weight.relative_delta) for weight in folded],
            percent,
            top=even_top(weight.relative_delta for weight in folded),
            note="How large the update is beside the weight. Even colours are usual; look at a cell that stands out.",
        ),
        heatmap(
            "unchanged-map",
            "Elements that rounding left unchanged, in percent, by layer and module",
            [(weight.name, weight.unchanged_share) for weight in folded],
            percent,
            top=1.0,
            note="Where this is near 100 %, the update is too small for the output's type, and is lost in rounding.",
        ),
    )
    return tuple(figure for figure in figures if figure is not None)


def _weights_table(weights: tuple[FoldedWeight, ...]) -> Table:
    columns = (
        Column("Weight"),
        Column("Shape"),
        Column("Type"),
        Column("Rank", is_number=True),
        Column("Scale", is_number=True),
        Column("|delta| / |weight|", is_number=True),
        Column("Unchanged", is_number=True),
        Column("|weight|", is_number=True),
        Column("|delta|", is_number=True),
        Column("Adapters"),
    )
    return Table("weights-table", "Weights that are not the base's", columns, tuple(map(_weight_row, weights)))


def _weight_row(weight: FoldedWeight) -> tuple[Cell, ...]:
    ranks = [use.rank for use in weight.adapters if use.rank is not None]
    scalings = [use.scaling for use in weight.adapters if use.scaling is not None]
    kinds = (f"{use.adapter}: {use.kind}{', DoRA' if use.dora else ''}" for use in weight.adapters)
    return (
        Cell(weight.name),
        Cell(shape_text(weight.shape)),
        Cell(weight.dtype),
        number_cell(max(ranks, default=None), ", ".join(map(str, ranks))),
        number_cell(max(scalings, default=None), ", ".join(f"{scaling:g}" for scaling in scalings)),
        percent_cell(weight.relative_delta),
        percent_cell(weight.unchanged_share),
        number_cell(weight.weight_norm),
        number_cell(weight.delta_norm),
        Cell("; ".join(kinds)),
    )


def _kept_blocks(report: MergeReport) -> tuple[Block, ...]:
    blocks = [Names(f"Copied byte for byte: {count_of(len(report.copied), 'tensor')}", report.copied)]
    if report.cast:
        blocks.append(Names(f"Cast to another type: {count_of(len(report.cast), 'tensor')}", report.cast))
    return tuple(blocks)
