"""An inspection's report for a terminal; `--json` has all of it."""

from __future__ import annotations

import json
import textwrap
from collections import Counter

from ckpt_tools.cli.common import printable
from ckpt_tools.cli.folding_names import number_ranges
from ckpt_tools.cli.inspect_differences import difference_lines
from ckpt_tools.cli.inspect_served import served_lines
from ckpt_tools.cli.inspect_tables import layout_lines, rank_lines, spectrum_lines, tensor_lines
from ckpt_tools.cli.table import elide, output_width
from ckpt_tools.reports import InspectedFamily, InspectReport
from ckpt_tools.sizes import format_size

__all__ = ["summarise"]

_PLURALS = {"weight": "weights", "adapter": "adapter", "optimizer": "optimizer", "scalar": "scalars", "other": "other"}
_MAX_SCALARS = 6
_MAX_METADATA = 12
_LABEL = 11
_NARROWEST = 8
_CUT = ("base", "metadata", "")  # whose values may be pages long


def summarise(report: InspectReport, *, list_all: bool = False, width: int | None = None) -> str:
    """What an inspection found.

    Args:
        report: The report.
        list_all: Whether every tensor has a line of its own.
        width: Columns of the terminal; by default those of stdout, where it is one.
    """
    width = output_width() if width is None else width
    if report.kind == "adapters":
        count = len(report.adapters)
        head = f"{printable(report.path)}: a folder of {count} adapter{'s' * (count != 1)}"
        return "\n".join([head, "", *served_lines(report, width, list_all=list_all)])
    facts = _totals(report) + _families(report) + _layout(report) + _metadata(report)
    what, path = printable(_headline(report)), printable(report.path)
    lines = [f"{path if width is None else elide(path, max(width - len(what), _NARROWEST))}{what}"]
    for label, text in facts:
        line = f"  {label:<{_LABEL}} {printable(text)}"
        if width is None:
            lines.append(line)
        elif label in _CUT:
            lines.append(line if len(line) <= width else f"{line[: width - 3]}...")
        else:
            lines += textwrap.wrap(line, width, subsequent_indent=" " * (_LABEL + 3), drop_whitespace=True)
    if report.comparison is not None:
        parts = [difference_lines(report.comparison, width, list_all=list_all)]
    else:
        parts = [
            tensor_lines(report, width, list_all=list_all),
            layout_lines(report, width, list_all=list_all) if report.kind == "strategy" else [],
            rank_lines(report, width),
        ]
    parts.append(spectrum_lines(report, width))
    for part in filter(None, parts):
        lines += ["", *part]
    return "\n".join(lines)


def _headline(report: InspectReport) -> str:
    """What stands behind the path."""
    if report.kind == "strategy":
        devices = "1 device" if report.ranks == 1 else f"{report.ranks} devices"
        return f": a strategy of {devices}"
    nbytes = sum(total.nbytes for total in report.totals)
    what = {
        "file": report.format,
        "folder": f"a folder of {len(report.files)} {report.format} file{'s' * (len(report.files) != 1)}",
        "ranks": f"{report.ranks} ranks' {report.format} files",
        "iteration": f"Checkpoint 2.0 of {report.ranks} rank{'s' * (report.ranks != 1)}",
    }[report.kind]
    step = f", step {report.step}" if report.step else ""
    slices = ", slices of rank 0" if report.sliced else ""
    count = len(report.tensors)
    return f": {what}{step}{slices}, {count} tensor{'s' * (count != 1)}, {format_size(nbytes)}"


def _totals(report: InspectReport) -> list[tuple[str, str]]:
    facts = []
    for group in dict.fromkeys(total.group for total in report.totals):
        totals = [total for total in report.totals if total.group == group]
        count, elements = sum(total.tensors for total in totals), sum(total.elements for total in totals)
        text = f"{count} tensor{'s' * (count != 1)}, {_numbers(elements)}: "
        text += ", ".join(f"{format_size(total.nbytes)} {total.dtype}" for total in totals)
        if group == "scalar" and report.scalars:
            shown = [f"{name} {value:g}" for name, value in list(report.scalars.items())[:_MAX_SCALARS]]
            text = ", ".join([*shown, "..."] if len(report.scalars) > _MAX_SCALARS else shown)
        if group == "optimizer":
            states = Counter(tensor.role.partition(": ")[2] for tensor in report.tensors if tensor.group == "optimizer")
            text += f" ({', '.join(f'{count} {state}' for state, count in states.items())})"
        facts.append((_PLURALS[group], text))
    return facts


def _numbers(count: int) -> str:
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit} parameters"
    return f"{count} parameter{'s' * (count != 1)}"


def _families(report: InspectReport) -> list[tuple[str, str]]:
    return [("method", _family(report, family)) for family in report.families]


def _family(report: InspectReport, family: InspectedFamily) -> str:
    text = f"{family.method}, spelled as {family.family}"
    pairs = [pair for pair in report.pairs if family.method == "LoRA" and pair.family == family.family]
    if not pairs:
        return f"{text}; {family.tensors} tensors"
    ranks = ", ".join(map(str, family.ranks))
    alphas = ", ".join(f"{alpha:g}" for alpha in family.alphas)
    if any(pair.alpha is None for pair in pairs):
        alphas = f"{alphas}, elsewhere unknown" if alphas else "unknown"
    text += f"; {len(pairs)} layer{'s' * (len(pairs) != 1)}, rank {ranks}, alpha {alphas}"
    text += f" ({family.config})" if family.config else ""
    return text + (", DoRA" if any(pair.dora for pair in pairs) else "")


def _layout(report: InspectReport) -> list[tuple[str, str]]:
    facts = []
    if report.stages:
        of = f" ({report.strategy})" if report.strategy else ""
        stages = f"{report.stages} pipeline stages of" if report.stages > 1 else "one stage of"
        facts.append(("layout", f"{stages} {report.stage_devices} devices{of}"))
        matrices = Counter(layout.device_matrix for layout in report.layouts)
        shown = ", ".join(f"{_product(matrix)} of {count}" for matrix, count in matrices.most_common())
        facts.append(("matrices", f"{shown} parameters"))
    if len(report.steps) > 1:
        steps = report.steps if len(report.steps) <= _MAX_SCALARS else ("...", *report.steps[-_MAX_SCALARS:])
        facts.append(("steps", ", ".join(steps)))
    if len(report.rank_groups) == 1 and report.sliced:
        group = report.rank_groups[0]
        facts.append(
            (
                "ranks",
                f"{number_ranges(group.ranks)}: the same names, types and shapes, {format_size(group.nbytes)} each",
            )
        )
    return facts


def _product(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes)) or "1"


def _metadata(report: InspectReport) -> list[tuple[str, str]]:
    facts = [("base", report.base_fingerprint)] if report.base_fingerprint else []
    entries = [(key, value) for key, value in (report.metadata or {}).items() if value != report.base_fingerprint]
    facts += [
        ("metadata" if number == 0 else "", f"{key}: {_brief(value)}")
        for number, (key, value) in enumerate(entries[:_MAX_METADATA])
    ]
    if len(entries) > _MAX_METADATA:
        facts.append(("", f"and {len(entries) - _MAX_METADATA} more entries, which --json has"))
    return facts


def _brief(value: str) -> str:
    """A value in which JSON is shown without its line breaks."""
    if value[:1] in ("{", "["):
        try:
            return json.dumps(json.loads(value), ensure_ascii=False)[:500]
        except ValueError:
            pass
    return value[:500]
