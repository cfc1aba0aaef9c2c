"""A report in a few lines for a terminal; `--json` has all of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from ckpt_tools.cli.common import printable
from ckpt_tools.reports import (
    CombineReport,
    DroppedTensor,
    FoldedWeight,
    InjectReport,
    MergeReport,
    SplitReport,
    TransformReport,
    UnmergeReport,
)
from ckpt_tools.sizes import format_size

__all__ = ["ROUNDING", "dropped_text", "loss_text", "percent", "summarise", "volume_facts"]

ROUNDING = 1e-6
"""What is lost of a norm by rounding to float32, at most."""


def summarise(report: MergeReport) -> str:
    """What a merge did, or would do."""
    lines = [_headline(report)]
    lines += [f"  adapter    {line}" for line in _adapters(report)]
    lines += [f"  {label:<10} {text}" for label, text in _facts(report)]
    return "\n".join(map(printable, lines))


def _headline(report: MergeReport) -> str:
    verb = "would merge" if report.dry_run else "merged"
    inputs = " + ".join([report.base, *(adapter.path for adapter in report.adapters if adapter.path != report.base)])
    return f"{verb} {inputs} -> {report.output}"


def _adapters(report: MergeReport) -> list[str]:
    lines = []
    for adapter in report.adapters:
        uses = [use for weight in report.weights for use in weight.adapters if use.adapter == adapter.path]
        folded = [use for use in uses if use.scaling is not None]
        ranks = sorted({use.rank for use in folded if use.rank is not None})
        scalings = sorted({use.scaling for use in folded if use.scaling is not None})
        alphas = sorted({use.alpha for use in folded if use.alpha is not None})
        parts = [", ".join(adapter.families) or "plain weights"]
        if folded:
            parts.append(f"rank {_values(ranks)}")
            origin = adapter.config if alphas and adapter.config else "the command line"
            alpha = f", alpha {_values(alphas)}" if alphas else ""
            parts.append(f"scaling {_values(scalings)} ({origin}{alpha})")
        if adapter.weight != 1:
            parts.append(f"weight {adapter.weight:g}")
        if adapter.names:
            parts.append(f"names {adapter.names}")
        lines.append("; ".join(parts))
    return lines


def _facts(report: MergeReport) -> list[tuple[str, str]]:
    folded = [w for w in report.weights if any(use.kind != "replaced" for use in w.adapters)]
    replaced = len(report.weights) - len(folded)
    facts = [("folded", f"{len(folded)} weights" + (f"; {replaced} replaced" if replaced else ""))]
    if any(weight.relative_delta is not None for weight in folded):
        facts += _measurements(folded)
    combined = [weight.combination for weight in folded if weight.combination is not None]
    if combined:
        errors = [one.relative_error for one in combined]
        facts.insert(1, ("combined", f"{report.how}; {loss_text(errors)}"))
    others = f"{len(report.copied)} tensors" + (f"; {len(report.cast)} cast" if report.cast else "")
    facts.append(("copied", others))
    if report.dropped:
        facts.append(("dropped", dropped_text(report.dropped)))
    if report.unmerge_patch is not None:
        facts.append(("patch", _patch(report)))
    return facts + volume_facts(report)


def _patch(report: MergeReport) -> str:
    if report.unmerge_patch_bytes is None:
        return f"{report.unmerge_patch}; its size shows when it is made"
    share = percent(report.unmerge_patch_share or 0.0)
    return f"{report.unmerge_patch}, {format_size(report.unmerge_patch_bytes)}, {share} of the base"


def volume_facts(
    report: CombineReport | InjectReport | MergeReport | SplitReport | TransformReport | UnmergeReport,
) -> list[tuple[str, str]]:
    """What was, or would be, read and written."""
    files = f"{len(report.files)} files" if len(report.files) > 1 else report.format
    written = f"{format_size(report.bytes_written)}, {files}"
    if report.dry_run:
        return [
            ("reads", format_size(report.bytes_read)),
            ("writes", f"{written}; {format_size(report.free_disk_bytes)} free"),
            ("memory", f"at most {format_size(report.peak_memory_bytes)}"),
        ]
    rate = format_size(round(report.bytes_written / max(report.seconds, 1e-9)))
    facts = [("wrote", f"{written}, in {report.seconds:.2f} s ({rate}/s)")]
    if report.resumed:
        files = "1 file" if len(report.resumed) == 1 else f"{len(report.resumed)} files"
        facts.append(("took over", f"{files} that earlier runs completed"))
    if not isinstance(report, CombineReport | SplitReport | UnmergeReport) and report.ranks is not None:
        facts.append(
            ("kept", f"ranks {report.ranks}, for the same command without --ranks, which publishes the output")
        )
    return facts


def _measurements(folded: list[FoldedWeight]) -> list[tuple[str, str]]:
    measured = [weight.relative_delta for weight in folded if weight.relative_delta is not None]
    deltas = [delta for delta in measured if math.isfinite(delta)]
    odd = f"NaN or Inf in {len(measured) - len(deltas)} weights" if len(deltas) < len(measured) else ""
    sizes = (
        f"|delta| / |weight| {percent(min(deltas))} to {percent(max(deltas))}, median {percent(median(deltas))}"
        if deltas
        else ""
    )
    shares = [weight.unchanged_share for weight in folded if weight.unchanged_share is not None]
    largest = max(folded, key=lambda weight: weight.unchanged_share or 0.0)
    return [
        ("delta", "; ".join(filter(None, (sizes, odd)))),
        (
            "rounding",
            f"left {percent(median(shares))} of the elements unchanged (median); "
            f"at most {percent(max(shares))}, in {largest.name}",
        ),
    ]


def dropped_text(dropped: Sequence[DroppedTensor]) -> str:
    """What of the inputs is not in the output: how many for each reason."""
    reasons = Counter(entry.reason for entry in dropped)
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def loss_text(errors: list[float]) -> str:
    """What layers lose by a rank and a type, of their norms.

    Args:
        errors: The loss of each layer, by its norm; at least one.
    """
    if max(errors) <= ROUNDING:
        return "rank and type lose nothing but rounding"
    return f"rank and type lose {percent(median(errors))} of a layer's norm (median), at most {percent(max(errors))}"


def _values(values: list[int] | list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "-"


def percent(share: float) -> str:
    """A share in percent, with three digits."""
    return f"{100 * share:.3g} %"
