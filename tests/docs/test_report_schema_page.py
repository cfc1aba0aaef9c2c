"""docs/report-schema.md has every field of the reports, with the type that it has in JSON."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

from ckpt_tools import reports

PAGE = (Path(__file__).parents[2] / "docs" / "report-schema.md").read_text(encoding="utf-8")

HEADINGS = {
    reports.Report: "All reports",
    reports.OutputReport: "All outputs",
    reports.MergeReport: "Merge report",
    reports.AdapterReport: "Adapter",
    reports.FoldedWeight: "Weight",
    reports.AdapterUse: "Use",
    reports.CombinedLayer: "Combined",
    reports.CombineReport: "Combine report",
    reports.CombinedParameter: "Made",
    reports.DroppedTensor: "Dropped",
    reports.SplitReport: "Split report",
    reports.SplitParameter: "Parameter",
    reports.ExtractedLayer: "Layer",
    reports.InjectReport: "Inject report",
    reports.AddedParameter: "Added",
    reports.NearMiss: "Miss",
    reports.InspectReport: "Inspect report",
    reports.InspectedTensor: "Content",
    reports.InspectedTotal: "Total",
    reports.InspectedFamily: "Family",
    reports.InspectedPair: "Pair",
    reports.Spectrum: "Spectrum",
    reports.InspectedLayout: "Layout",
    reports.RankGroup: "Group",
    reports.OtherShape: "Shapes",
    reports.Comparison: "Comparison",
    reports.ComparedTensor: "Compared",
    reports.ServedAdapter: "Served",
    reports.AdapterSimilarity: "Similarity",
    reports.TransformReport: "Transform report",
    reports.ManifestReport: "Manifest report",
    reports.TransformedTensor: "Tensor",
    reports.UnmergeReport: "Unmerge report",
    reports.VerifyReport: "Verify report",
    reports.VerifiedWeight: "Verified",
    reports.Offender: "Offender",
}
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}


def _json_type(annotation: typing.Any) -> str:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        assert arguments[1:] == (...,)
        return f"array of {_json_type(arguments[0])}"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(map(_json_type, arguments))
    if typing.get_origin(annotation) is Mapping:
        return "object"
    heading = HEADINGS.get(annotation)
    return JSON_TYPES[annotation] if heading is None else f"[{heading}](#{heading.lower()})"


def test_every_dataclass_of_the_reports_has_a_table() -> None:
    assert {getattr(reports, name) for name in reports.__all__ if not name.isupper()} == set(HEADINGS)


@pytest.mark.parametrize("kind", list(HEADINGS), ids=HEADINGS.get)
def test_a_table_has_the_fields_in_order_and_their_types(kind: type) -> None:
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    table = next(part for part in section if part.startswith(f"{HEADINGS[kind]}\n"))
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", table, re.MULTILINE)
    annotations = typing.get_type_hints(kind)
    inherited = {field.name for base in kind.__mro__[1:-1] for field in dataclasses.fields(base)}
    own = [field.name for field in dataclasses.fields(kind) if field.name not in inherited]
    expected = [(name, _json_type(annotations[name])) for name in own]
    assert [(name, type_) for name, type_, _ in rows] == expected
    assert all(meaning.strip() for _, _, meaning in rows)
