"""The page of an injection."""

from __future__ import annotations

import math

from ckpt_tools.pages.blocks import Block, Cell, Check, Column, Content, Fact, Names, Section, Table
from ckpt_tools.pages.heatmaps import heatmap
from ckpt_tools.pages.outputs import dropped_blocks, outcome_check, title_of, volume_section
from ckpt_tools.pages.text import count_of, listed, number_cell, percent, shape_text
from ckpt_tools.reports import AddedParameter, InjectReport
from ckpt_tools.sizes import format_size

__all__ = ["inject_content"]


def inject_content(report: InjectReport) -> Content:
    """What the page of an injection says."""
    return Content(
        title_of(report, "Injected into", "Would inject into"),
        tuple(_checks(report)),
        tuple(_facts(report)),
        (
            Section("layers", "Changed layers", _layer_blocks(report)),
            Section("misses", "Near misses", _miss_blocks(report)),
            Section("added", "All new parameters", _added_blocks(report.added)),
            Section("dropped", "Dropped", dropped_blocks(report.dropped)),
            Section("kept", "Copied, cast and replaced", _kept_blocks(report)),
            volume_section(report, Fact("Files beside the output", ", ".join(report.companions) or "none")),
        ),
    )


def _checks(report: InjectReport) -> list[Check]:
    share = report.trainable_elements / report.total_elements if report.total_elements else 0.0
    checks = [
        outcome_check(report, report.ranks),
        Check(
            "Added",
            f"{count_of(len(report.added), 'parameter')} of {report.pet_type} in "
            f"{count_of(len(report.layers), 'layer')}",
        ),
        Check(
            "Trained",
            f"{percent(share)} of the network: {report.trainable_elements:,} of {report.total_elements:,} numbers, in "
            f"{count_of(report.trainable_parameters, 'parameter')}, {format_size(report.trainable_bytes)}",
        ),
    ]
    if report.near_misses:
        names = [miss.layer for miss in report.near_misses]
        text = f"{count_of(len(names), 'layer')} nearly selected: {listed(names)}"
        checks.append(Check("Near misses", text, is_fine=False))
    if report.network_checked:
        checks.append(Check("Network", "built, and the output loaded into it"))
    return checks


def _facts(report: InjectReport) -> list[Fact]:
    facts = [Fact("Base", report.base), Fact("Configuration", report.config)]
    if report.adapter is not None:
        facts.append(
            Fact("Adapter", report.adapter + (f" (names {report.adapter_names})" if report.adapter_names else ""))
        )
    else:
        facts.append(Fact("Seed", str(report.seed)))
    facts.append(Fact("Output", f"{report.output} ({report.format}{', the new parameters alone' * report.only_delta})"))
    if report.src_strategy is not None:
        facts.append(Fact("Layout of the base", f"{report.src_strategy}, {count_of(report.src_ranks, 'rank')}"))
    if report.dst_strategy is not None:
        facts.append(Fact("Layout of the output", f"{report.dst_strategy}, {count_of(report.dst_ranks, 'rank')}"))
    return [*facts, Fact("Base fingerprint", report.base_fingerprint)]


def _layer_blocks(report: InjectReport) -> tuple[Block, ...]:
    by_layer: dict[str, list[AddedParameter]] = {}
    for parameter in report.added:
        by_layer.setdefault(parameter.layer, []).append(parameter)
    if not by_layer:
        return ()
    elements = {layer: sum(math.prod(one.shape) for one in added) for layer, added in by_layer.items()}
    picture = heatmap(
        "added-map",
        "Numbers added, by layer and module",
        [(layer, float(count)) for layer, count in elements.items()],
        _short,
        note="A dot is a layer without new parameters where others have some: is the rule meant to leave it out?",
    )
    columns = (
        Column("Layer"),
        Column("Parameters", is_number=True),
        Column("Numbers", is_number=True),
        Column("Trained", is_number=True),
        Column("Shapes"),
    )
    rows = tuple(
        (
            Cell(layer or "the network itself"),
            number_cell(len(added), str(len(added))),
            number_cell(elements[layer], f"{elements[layer]:,}"),
            number_cell(trained := sum(one.is_trained for one in added), str(trained)),
            Cell(", ".join(shape_text(one.shape) for one in added)),
        )
        for layer, added in by_layer.items()
    )
    table = Table("layers-table", "New parameters by layer", columns, rows)
    return (table,) if picture is None else (picture, table)


def _short(count: float) -> str:
    """A count of a few letters."""
    value = count
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            break
        value /= 1000
    return f"{value:.3g}{unit}"


def _miss_blocks(report: InjectReport) -> tuple[Block, ...]:
    rows = tuple((Cell(miss.layer), Cell(miss.reason)) for miss in report.near_misses)
    table = Table("misses-table", "Layers that nearly were changed", (Column("Layer"), Column("Why it was not")), rows)
    return (table,) if rows else ()


def _added_blocks(added: tuple[AddedParameter, ...]) -> tuple[Block, ...]:
    columns = tuple(map(Column, ("Parameter", "Layer", "Shape", "Type", "Begins with", "Trained")))
    rows = tuple(
        tuple(
            map(
                Cell,
                (one.name, one.layer, shape_text(one.shape), one.dtype, one.origin, "yes" if one.is_trained else "no"),
            )
        )
        for one in added
    )
    return (Table("added-table", "New parameters", columns, rows),) if rows else ()


def _kept_blocks(report: InjectReport) -> tuple[Block, ...]:
    groups = (
        ("Copied byte for byte", report.copied),
        ("Cast", report.cast),
        ("Replaced by the adapter", report.replaced),
    )
    return tuple(Names(f"{title}: {count_of(len(names), 'tensor')}", names) for title, names in groups if names)
