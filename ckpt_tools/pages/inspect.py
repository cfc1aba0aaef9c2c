"""The page of an inspection: what is in a checkpoint or a strategy, and what differs between two."""

from __future__ import annotations

from ckpt_tools.layout import Layout, Strategy, read_strategy
from ckpt_tools.pages.blocks import Block, Cell, Check, Choice, Column, Content, Fact, Names, Paragraph, Section, Table
from ckpt_tools.pages.heatmaps import heatmap
from ckpt_tools.pages.layout_figures import layout_figure
from ckpt_tools.pages.served import served_content
from ckpt_tools.pages.spectra import Spectrum, spectra_blocks
from ckpt_tools.pages.text import count_of, number_cell, percent, percent_cell, shape_text
from ckpt_tools.reports import Comparison, InspectedLayout, InspectReport
from ckpt_tools.sizes import format_size
from surgery.errors import MismatchError, PetSurgeryError

__all__ = ["inspect_content"]

_MOST_LAYOUTS = 24


def inspect_content(report: InspectReport) -> Content:
    """What the page of an inspection says. A strategy that the report names is read again, for the drawings."""
    if report.kind == "adapters":
        return served_content(report)
    return Content(
        report.path if report.comparison is None else f"{report.path} and {report.comparison.other}",
        tuple(_checks(report)),
        tuple(_facts(report)),
        (
            Section("differences", "What differs", _difference_blocks(report.comparison)),
            Section("adapters", "Adapters", _adapter_blocks(report)),
            Section("spectra", "Singular values", _spectra_blocks(report)),
            Section("layouts", "How parameters are cut", _layout_blocks(report)),
            Section("tensors", "Tensors", _tensor_blocks(report)),
            Section("metadata", "Metadata", _metadata_blocks(report)),
        ),
    )


def _checks(report: InspectReport) -> list[Check]:
    totals = [f"{total.tensors} {total.group} in {total.dtype}, {format_size(total.nbytes)}" for total in report.totals]
    checks = [Check("Tensors", "; ".join(totals))] if totals else []
    compared = report.comparison
    if compared is not None:
        differing = sum(not tensor.equal_bits for tensor in compared.tensors)
        alone = len(compared.only_here) + len(compared.only_there)
        text = f"{differing} tensors differ, {alone} are in one of them alone, of {len(compared.tensors) + alone}"
        checks.append(Check("Compared", "all is equal, to the bit" if compared.equal else text, compared.equal))
    if report.rank_differences:
        text = f"{count_of(len(report.rank_differences), 'tensor')} of other shapes or types on some ranks"
        checks.append(Check("Ranks", text))
    return checks


def _facts(report: InspectReport) -> list[Fact]:
    facts = [Fact("Path", f"{report.path} ({', '.join(filter(None, (report.kind, report.format)))})")]
    if report.files:
        facts.append(Fact("Files", f"{count_of(len(report.files), 'file')}, {format_size(report.file_bytes)}"))
    if report.ranks:
        facts.append(Fact("Ranks", f"{report.ranks}{', of which rank 0 is shown' if report.sliced else ''}"))
    if report.stages:
        facts.append(Fact("Strategy", f"{count_of(report.stages, 'stage')} of {report.stage_devices} devices"))
    if report.step:
        facts.append(Fact("Step", report.step))
    for family in report.families:
        ranks = f", rank {', '.join(map(str, family.ranks))}" if family.ranks else ""
        alphas = ", ".join(f"{alpha:g}" for alpha in family.alphas) or "unknown"
        alpha = f", alpha {alphas}" if family.ranks else ""
        text = f"{family.method} ({family.family}): {count_of(family.tensors, 'tensor')}{ranks}{alpha}"
        facts.append(Fact("Adapter", text))
    if report.base_fingerprint:
        facts.append(Fact("Base fingerprint", report.base_fingerprint))
    facts += [Fact(name, f"{value:g}") for name, value in (report.scalars or {}).items()]
    return facts


def _difference_blocks(compared: Comparison | None) -> tuple[Block, ...]:
    if compared is None:
        return ()
    figure = heatmap(
        "difference-map",
        "|difference| / |weight| in percent, by layer and module",
        [(one.name, one.relative_difference) for one in compared.tensors],
        percent,
        note="How far the two are apart, beside the first.",
    )
    columns = (
        Column("Tensor"),
        Column("Shape"),
        Column("Type"),
        Column("Equal"),
        Column("Elements that differ", is_number=True),
        Column("|difference| / |weight|", is_number=True),
        Column("Largest difference", is_number=True),
        Column("|weight|", is_number=True),
    )
    rows = tuple(
        (
            Cell(one.name),
            Cell(_both(shape_text(one.shape), shape_text(one.other_shape))),
            Cell(_both(one.dtype, one.other_dtype)),
            Cell("to the bit" if one.equal_bits else "no"),
            number_cell(one.differing, "" if one.differing is None else str(one.differing)),
            percent_cell(one.relative_difference),
            number_cell(one.largest_difference),
            number_cell(one.norm),
        )
        for one in compared.tensors
    )
    table = Table("differences-table", "Tensors that both have", columns, rows)
    alone = (("Only in the first", compared.only_here), ("Only in the other", compared.only_there))
    names = (Names(f"{title}: {len(found)}", found) for title, found in alone if found)
    return (*([figure] if figure is not None else []), *([table] if rows else []), *names)


def _both(one: str, other: str) -> str:
    return one if one == other else f"{one} → {other}"


def _adapter_blocks(report: InspectReport) -> tuple[Block, ...]:
    if not report.pairs:
        return ()
    columns = (
        Column("Layer"),
        Column("Kind"),
        Column("Rank", is_number=True),
        Column("Alpha", is_number=True),
        Column("Scale", is_number=True),
        Column("A"),
        Column("B"),
    )
    rows = tuple(
        (
            Cell(pair.layer),
            Cell(f"{pair.kind}{', DoRA' if pair.dora else ''}"),
            number_cell(pair.rank, str(pair.rank)),
            _known(pair.alpha),
            _known(pair.scaling),
            Cell(pair.a),
            Cell(pair.b),
        )
        for pair in report.pairs
    )
    return (Table("pairs-table", "Low-rank updates", columns, rows),)


def _known(value: float | None) -> Cell:
    return Cell("unknown") if value is None else number_cell(value, f"{value:g}")


def _spectra_blocks(report: InspectReport) -> tuple[Block, ...]:
    spectra = [
        Spectrum(pair.layer, pair.spectrum.singular_values, pair.spectrum.effective_rank)
        for pair in report.pairs
        if pair.spectrum is not None
    ]
    return spectra_blocks(spectra) if spectra else ()


def _tensor_blocks(report: InspectReport) -> tuple[Block, ...]:
    if not report.tensors:
        return ()
    columns = (
        Column("Tensor"),
        Column("Role"),
        Column("Shape"),
        Column("Type"),
        Column("Bytes", is_number=True),
        Column("Parts"),
    )
    rows = tuple(
        (
            Cell(one.name),
            Cell(one.role),
            Cell(shape_text(one.shape)),
            Cell(one.dtype),
            number_cell(one.nbytes, format_size(one.nbytes)),
            Cell(shape_text(one.parts) if one.parts else ""),
        )
        for one in report.tensors
    )
    caption = "Slices of rank 0" if report.sliced else "What the checkpoint holds"
    return (Table("tensors-table", caption, columns, rows),)


def _metadata_blocks(report: InspectReport) -> tuple[Block, ...]:
    if not report.metadata:
        return ()
    rows = tuple(
        (Cell(key), Cell(text if len(text) < 200 else f"{text[:200]}…")) for key, text in report.metadata.items()
    )
    return (Table("metadata-table", "What the files say beside the tensors", (Column("Key"), Column("Text")), rows),)


def _layout_blocks(report: InspectReport) -> tuple[Block, ...]:
    if not report.layouts:
        return ()
    groups: dict[tuple[object, ...], list[InspectedLayout]] = {}
    for one in report.layouts:
        groups.setdefault((one.stage, one.device_matrix, one.tensor_map, one.parts, one.optimizer_shards), []).append(
            one
        )
    columns = tuple(map(Column, ("Parameter", "Stage", "Device matrix", "Map", "Parts", "Replicas")))
    rows = tuple(
        tuple(
            map(
                Cell,
                (
                    one.name,
                    str(one.stage),
                    shape_text(one.device_matrix),
                    str([list(axis) for axis in one.tensor_map]),
                    shape_text(one.parts) if one.parts else "by the shape",
                    str(one.replicas) if one.replicas else "by the shape",
                ),
            )
        )
        for one in report.layouts
    )
    table = Table("layouts-table", "How the strategy cuts parameters", columns, rows)
    return (*_drawings(report, list(groups.values())), table)


def _drawings(report: InspectReport, groups: list[list[InspectedLayout]]) -> tuple[Block, ...]:
    place = report.strategy or (report.path if report.kind == "strategy" else None)
    if place is None:
        return ()
    try:
        strategy: Strategy = read_strategy(place)
    except PetSurgeryError as error:
        return (Paragraph(f"The strategy could not be read again for this page. {error}"),)
    shapes = {one.name: one.shape for one in report.tensors}
    options: list[tuple[str, tuple[Block, ...]]] = []
    for group in sorted(groups, key=lambda group: all(part == 1 for part in group[0].parts))[:_MOST_LAYOUTS]:
        one = group[0]
        layout = strategy.stages[one.stage].get(one.name)
        if layout is None:
            continue
        more = f" and {len(group) - 1} more alike" if len(group) > 1 else ""
        options.append((f"{one.name}{more}", (_drawing(f"layout-{len(options)}", one, layout, shapes, strategy),)))
    note = f"The first {len(options)} different layouts are drawn, of {len(groups)}."
    notes = (Paragraph(note),) if len(groups) > len(options) else ()
    return (*notes, *([Choice("layout", "Parameter", tuple(options))] if options else []))


def _drawing(
    key: str,
    one: InspectedLayout,
    layout: Layout,
    shapes: dict[str, tuple[int, ...]],
    strategy: Strategy,
) -> Block:
    """A strategy has no shapes: without a checkpoint the tensor is drawn with one row for each part."""
    shape = shapes.get(one.name) or tuple(one.parts) or (1,) * len(one.tensor_map)
    title = f"{one.name}" if one.name in shapes else f"{one.name}, of any shape: a part for each unit"
    try:
        return layout_figure(key, title, layout, shape, one.stage * strategy.stage_devices)
    except MismatchError as error:
        return Paragraph(f"{one.name}: {error}")
