"""The page of a transform."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tools.layout import Layout, Strategy, read_strategy
from ckpt_tools.pages.blocks import (
    Block,
    Cell,
    Check,
    Choice,
    Column,
    Content,
    Fact,
    Figure,
    Names,
    Paragraph,
    Section,
    Table,
)
from ckpt_tools.pages.layout_figures import layout_figure
from ckpt_tools.pages.outputs import outcome_check, title_of, volume_section
from ckpt_tools.pages.text import count_of, listed, shape_text
from ckpt_tools.reports import TransformedTensor, TransformReport
from surgery.errors import MismatchError, PetSurgeryError

__all__ = ["transform_content"]

MOST_LAYOUTS = 24
"""How many different layouts are drawn."""

_Side = tuple[Layout, int] | None
"""A tensor's layout, and the first rank of its stage; None where it is whole or every rank has all of it."""


def transform_content(report: TransformReport) -> Content:
    """What the page of a transform says. Strategy files that the report names are read again, for the drawings."""
    recut = sum(tensor.src_parts != tensor.dst_parts for tensor in report.tensors)
    before, after = _layout(report.src_ranks, report.src_strategy), _layout(report.dst_ranks, report.dst_strategy)
    checks = [
        outcome_check(report, report.ranks),
        Check("Tensors", f"{len(report.tensors)}; {recut} of them cut otherwise than before"),
        Check("Dropped", f"{len(report.dropped)}: {listed(list(report.dropped))}" if report.dropped else "nothing"),
    ]
    if report.missing:
        checks.append(Check("Missing", f"{len(report.missing)}: {listed(list(report.missing))}", is_fine=False))
    facts = [
        Fact("Source", report.source + (f", step {report.step}" if report.step else "")),
        Fact("Layout", f"{before} → {after}"),
        Fact("Output", f"{report.output} ({report.format})"),
    ]
    return Content(
        title_of(report, "Transformed into", "Would transform into"),
        tuple(checks),
        tuple(facts),
        (
            Section("layouts", "How tensors are cut", _layout_blocks(report)),
            Section("tensors", "All tensors", (_tensor_table(report.tensors),) if report.tensors else ()),
            Section("missing", "Dropped and missing", _missing_blocks(report)),
            volume_section(report, Fact("Files with a CRC-32 that was checked", str(len(report.crc_checked)))),
        ),
    )


def _layout(ranks: int, strategy: str | None) -> str:
    if not ranks:
        return "whole"
    return f"{count_of(ranks, 'rank')}{f' ({strategy})' if strategy else ''}"


def _layout_blocks(report: TransformReport) -> tuple[Block, ...]:
    sides = {"Before": report.src_strategy, "After": report.dst_strategy}
    if not any(sides.values()):
        return ()
    outcomes = {side: _try_read(path) for side, path in sides.items()}
    blocks: list[Block] = [
        Paragraph(f"{side}: the strategy could not be read again for this page. {outcome}")
        for side, outcome in outcomes.items()
        if isinstance(outcome, PetSurgeryError)
    ]
    strategies = {side: None if isinstance(one, PetSurgeryError) else one for side, one in outcomes.items()}
    groups = _groups(report.tensors, strategies)
    options = tuple(
        (_label(tensors), tuple(_figures(f"layout-{number}", tensors[0], layouts)))
        for number, (layouts, tensors) in enumerate(groups[:MOST_LAYOUTS])
    )
    if len(groups) > len(options):
        blocks.append(Paragraph(f"The first {len(options)} different layouts are drawn, of {len(groups)}."))
    if options:
        blocks.append(Choice("layout", "Tensor", options))
    return tuple(blocks)


def _try_read(path: str | None) -> Strategy | PetSurgeryError | None:
    try:
        return None if path is None else read_strategy(path)
    except PetSurgeryError as error:
        return error


def _groups(
    tensors: tuple[TransformedTensor, ...], strategies: Mapping[str, Strategy | None]
) -> list[tuple[dict[str, _Side], list[TransformedTensor]]]:
    """Tensors that are cut alike; those that are whole on both sides come last."""
    found: dict[object, tuple[dict[str, _Side], list[TransformedTensor]]] = {}
    for tensor in tensors:
        layouts = {side: _side(strategy, tensor.name) for side, strategy in strategies.items()}
        if any(layouts.values()):
            key = (tensor.shape, *(side and side[0] for side in layouts.values()))
            found.setdefault(key, (layouts, []))[1].append(tensor)
    return sorted(found.values(), key=lambda group: not _is_cut(group[1][0]))


def _is_cut(tensor: TransformedTensor) -> bool:
    return any(parts != 1 for parts in (*tensor.src_parts, *tensor.dst_parts))


def _side(strategy: Strategy | None, name: str) -> _Side:
    if strategy is None:
        return None
    for number, stage in enumerate(strategy.stages):
        if name in stage:
            return stage[name], number * strategy.stage_devices
    return None


def _label(tensors: list[TransformedTensor]) -> str:
    more = f" and {len(tensors) - 1} more alike" if len(tensors) > 1 else ""
    return f"{tensors[0].name}, {shape_text(tensors[0].shape)}{more}"


def _figures(key: str, tensor: TransformedTensor, layouts: Mapping[str, _Side]) -> list[Figure | Paragraph]:
    figures: list[Figure | Paragraph] = []
    for side, found in layouts.items():
        if found is None:
            figures.append(Paragraph(f"{side}: whole."))
            continue
        try:
            title = f"{side}: {tensor.name}"
            figures.append(layout_figure(f"{key}-{side.lower()}", title, found[0], tensor.shape, found[1]))
        except MismatchError as error:
            figures.append(Paragraph(f"{side}: {error}"))
    return figures


def _tensor_table(tensors: tuple[TransformedTensor, ...]) -> Table:
    columns = tuple(map(Column, ("Tensor", "Shape", "Type", "Parts before", "Parts after", "Cut")))
    rows = tuple(
        tuple(
            map(
                Cell,
                (
                    tensor.name,
                    shape_text(tensor.shape),
                    tensor.dtype,
                    shape_text(tensor.src_parts),
                    shape_text(tensor.dst_parts),
                    "as before" if tensor.src_parts == tensor.dst_parts else "otherwise",
                ),
            )
        )
        for tensor in tensors
    )
    return Table("tensors-table", "Tensors, and in how many parts each axis is cut", columns, rows)


def _missing_blocks(report: TransformReport) -> tuple[Block, ...]:
    if not (report.dropped or report.missing):
        return (Paragraph("Nothing: source and strategies speak of the same tensors."),)
    groups = (
        ("Dropped, as the target has no layout for them", report.dropped),
        ("Missing in the source", report.missing),
    )
    return tuple(Names(f"{title}: {len(names)}", names) for title, names in groups if names)
