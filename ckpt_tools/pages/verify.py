"""The pages of proofs: of a merge, and of an output by its manifest."""

from __future__ import annotations

import math

from ckpt_tools.pages.blocks import Block, Cell, Check, Column, Content, Fact, Names, Paragraph, Section, Table
from ckpt_tools.pages.heatmaps import even_top, heatmap
from ckpt_tools.pages.outputs import dropped_blocks
from ckpt_tools.pages.text import count_of, number_cell, percent, percent_cell, shape_text
from ckpt_tools.reports import ManifestReport, Offender, VerifiedWeight, VerifyReport
from ckpt_tools.sizes import format_size

__all__ = ["manifest_content", "verify_content"]


def verify_content(report: VerifyReport) -> Content:
    """What the page of the proof of a merge says."""
    adapters = [adapter.path for adapter in report.adapters if adapter.path != report.base]
    inputs = " + ".join([report.base, *adapters])
    wrong = count_of(len(report.offenders), "finding")
    checks = [
        Check("Verified", f"it is {inputs}")
        if report.passed
        else Check("Not verified", f"it is not {inputs}: {wrong}", is_fine=False),
        Check("Tensors", f"{len(report.weights)} changed, {len(report.equal)} equal, {len(report.cast)} cast"),
    ]
    if report.largest_error_ulp is not None:
        text = f"{report.largest_error_ulp:.4g} units in the last place of the result"
        checks.append(Check("Largest error", text, report.passed))
    if report.sample < 1:
        text = f"{percent(report.sampled_share)} of the elements were compared; what is wrong in a hundredth of the "
        text += f"model is found with a chance of {percent(report.chance_of_one_percent)} at least, a single element "
        checks.append(Check("Sample", f"{text}with {percent(report.chance_of_one_element)}", is_fine=False))
    scalings = sorted({use.scaling for one in report.weights for use in one.adapters if use.scaling is not None})
    limit = "float32, rounded once" if report.strict else "what honest rounding can do"
    facts = [
        Fact("Base", report.base),
        *(Fact("Adapter", path) for path in adapters),
        Fact("Merged", report.merged),
        Fact("Scale", ", ".join(f"{scaling:g}" for scaling in scalings) or "none"),
        Fact("Limit", limit if report.max_ulp is None else f"{report.max_ulp:g} units in the last place"),
        Fact("Names", report.names),
    ]
    return Content(
        f"{'Verified' if report.passed else 'Not verified'}: {report.merged}",
        tuple(checks),
        tuple(facts),
        (
            Section("offenders", "What is not as it must be", _offender_blocks(report.offenders)),
            Section("errors", "Errors and rounding", _figures(report.weights)),
            Section("weights", "All changed weights", (_table(report.weights),) if report.weights else ()),
            Section("dropped", "Not in the merged model, rightly", dropped_blocks(report.dropped)),
            Section("equal", "Equal and cast", _equal_blocks(report)),
        ),
    )


def manifest_content(report: ManifestReport) -> Content:
    """What the page of an output's comparison with its manifest says."""
    contents = f"{format_size(report.bytes_read)} of contents" if report.has_digests else "contents were not compared"
    return Content(
        f"Verified: {report.output}",
        (
            Check("Verified", f"it is as {report.tool} wrote it"),
            Check("Tensors", f"{report.tensors}, {contents}", report.has_digests),
            Check("Other files", str(report.companions)),
        ),
        (
            Fact("Output", report.output),
            Fact("Manifest", f"{report.manifest}, of a {report.made_by}"),
            Fact("Signature", report.signature or "none was asked for"),
        ),
        (),
    )


def _offender_blocks(offenders: tuple[Offender, ...]) -> tuple[Block, ...]:
    if not offenders:
        return (Paragraph("Nothing."),)
    columns = tuple(map(Column, ("Where", "Found", "Expected", "Remedy")))
    rows = tuple(tuple(map(Cell, (one.where, one.found, one.expected, one.remedy))) for one in offenders)
    return (Table("offenders-table", "Findings", columns, rows),)


def _figures(weights: tuple[VerifiedWeight, ...]) -> tuple[Block, ...]:
    errors = [one.error_ulp for one in weights if one.error_ulp is not None and math.isfinite(one.error_ulp)]
    figures = (
        heatmap(
            "error-map",
            "Largest error in units in the last place, by layer and module",
            [(one.name, one.error_ulp) for one in weights],
            lambda value: f"{value:.3g}",
            top=max([1.0, *errors]),
            note="Half a unit is what rounding once costs. A cell that stands out was computed otherwise, or is wrong.",
        ),
        heatmap(
            "delta-map",
            "|delta| / |weight| in percent, by layer and module",
            [(one.name, one.relative_delta) for one in weights],
            percent,
            top=even_top(one.relative_delta for one in weights),
            note="How large the exact update is beside the weight.",
        ),
        heatmap(
            "swamped-map",
            "Elements whose change rounding swallowed, in percent, by layer and module",
            [(one.name, one.swamped_share) for one in weights],
            percent,
            top=1.0,
            note="Where this is near 100 %, the update is too small for the type, and is lost in rounding.",
        ),
    )
    return tuple(figure for figure in figures if figure is not None)


def _table(weights: tuple[VerifiedWeight, ...]) -> Table:
    columns = (
        Column("Weight"),
        Column("Shape"),
        Column("Type"),
        Column("Error, ULP", is_number=True),
        Column("At"),
        Column("Beyond the limit", is_number=True),
        Column("|delta| / |weight|", is_number=True),
        Column("Swallowed", is_number=True),
        Column("Fitted", is_number=True),
    )
    rows = tuple(
        (
            Cell(one.name),
            Cell(shape_text(one.shape)),
            Cell(one.dtype),
            number_cell(one.error_ulp),
            Cell("" if one.error_at is None else str(list(one.error_at))),
            number_cell(one.beyond, str(one.beyond)),
            percent_cell(one.relative_delta),
            percent_cell(one.swamped_share),
            number_cell(one.fitted),
        )
        for one in weights
    )
    return Table("weights-table", "Weights that the adapters change", columns, rows)


def _equal_blocks(report: VerifyReport) -> tuple[Block, ...]:
    groups = (("With the base's bytes", report.equal), ("The base's, rounded to another type", report.cast))
    return tuple(Names(f"{title}: {count_of(len(names), 'tensor')}", names) for title, names in groups if names)
