"""pet-merge --unmerge: restore the base of a merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_tools.cli.common import make_progress, print_report, printable, refuse_others
from ckpt_tools.cli.summary import dropped_text, volume_facts
from ckpt_tools.reports import UnmergeReport

__all__ = ["restore", "summarise"]

_TAKEN = (
    *("output", "force", "dry_run", "threads", "max_memory", "executor", "format", "max_shard_size", "check_crc"),
    *("src_strategy", "adapter_strategy", "dst_strategy", "prefix", "step", "replicated"),
)
_OF_THE_COMMAND = ("base", "adapters", "as_json", "quiet", "unmerge")


def restore(
    merged: str,
    adapters: tuple[str, ...],
    patch: str,
    options: Mapping[str, Any],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Restore a base with the options of pet-merge.

    Raises:
        UsageError: An option was given that has no meaning here: the patch knows scales, names and types.
    """
    from ckpt_tools.unmerging import unmerge

    refuse_others("--unmerge", (*_TAKEN, *_OF_THE_COMMAND), "no options of the merge, which the patch knows")
    taken = {name: options[name] for name in _TAKEN}
    report = unmerge(merged, *adapters, patch=patch, **taken, progress=make_progress(quiet))
    print_report(report, summarise, as_json=as_json, quiet=quiet)


def summarise(report: UnmergeReport) -> str:
    """What undoing a merge did, or would do."""
    verb = "would restore" if report.dry_run else "restored"
    lines = [f"{verb} {' - '.join([report.merged, *report.adapters])} -> {report.output}"]
    proof = "" if report.dry_run else ", each bit for bit that of the base"
    lines.append(f"  restored   {len(report.restored)} tensors{proof}")
    if report.dropped:
        left = dropped_text(report.dropped)
        lines.append(f"  missing    {left}, which the merge left out: of {report.dropped[0].source}, not restored")
    lines += [f"  {label:<10} {text}" for label, text in volume_facts(report)]
    return "\n".join(map(printable, lines))
