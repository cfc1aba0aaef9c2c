"""A transform's report in a few lines for a terminal; `--json` has all of it."""

from __future__ import annotations

from ckpt_tools.cli.common import printable
from ckpt_tools.cli.summary import volume_facts
from ckpt_tools.reports import TransformReport

__all__ = ["summarise"]

_MAX_NAMES = 3


def summarise(report: TransformReport) -> str:
    """What a transform did, or would do."""
    verb = "would transform" if report.dry_run else "transformed"
    lines = [f"{verb} {report.source} -> {report.output}"]
    before, after = _layout(report.src_ranks, report.src_strategy), _layout(report.dst_ranks, report.dst_strategy)
    lines.append(f"  layout     {before}{f', step {report.step}' if report.step else ''} -> {after}")
    recut = sum(tensor.src_parts != tensor.dst_parts for tensor in report.tensors)
    lines.append(f"  tensors    {len(report.tensors)}; {recut} of them cut otherwise")
    for label, names in (("dropped", report.dropped), ("missing", report.missing)):
        if names:
            more = ", ..." if len(names) > _MAX_NAMES else ""
            lines.append(f"  {label:<10} {len(names)}: {', '.join(names[:_MAX_NAMES])}{more}")
    lines += [f"  {label:<10} {text}" for label, text in volume_facts(report)]
    return "\n".join(map(printable, lines))


def _layout(ranks: int, strategy: str | None) -> str:
    if not ranks:
        return "whole"
    return f"{ranks} rank{'s' if ranks > 1 else ''}{f' ({strategy})' if strategy else ''}"
