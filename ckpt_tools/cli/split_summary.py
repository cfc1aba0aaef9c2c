"""A split's report in a few lines for a terminal; `--json` has all of it."""

from __future__ import annotations

from collections import Counter
from statistics import median

from ckpt_tools.cli.common import printable
from ckpt_tools.cli.summary import dropped_text, volume_facts
from ckpt_tools.reports import SplitReport

__all__ = ["summarise"]


def summarise(report: SplitReport) -> str:
    """What a split did, or would do."""
    verb = "would split" if report.dry_run else "split"
    rest = f", the rest -> {report.remainder}" if report.remainder else ""
    lines = [f"{verb} {report.source} -> {report.output}{rest}"]
    lines += [f"  {label:<10} {text}" for label, text in _facts(report) + volume_facts(report)]
    return "\n".join(map(printable, lines))


def _facts(report: SplitReport) -> list[tuple[str, str]]:
    roles = Counter(parameter.role for parameter in report.parameters)
    facts = [("delta", f"{report.method}; " + ", ".join(f"{count} {role}" for role, count in roles.items()))]
    config = report.config or {}
    if "lora_alpha" in config:
        facts.append(("config", f"rank {config['r']}, alpha {config['lora_alpha']:g}"))
    if report.extracted:
        ranks = [layer.rank for layer in report.extracted]
        energies = [layer.energy for layer in report.extracted]
        errors = [layer.error for layer in report.extracted]
        worst = max(report.extracted, key=lambda layer: layer.error)
        facts.append(("rank", f"{min(ranks)} to {max(ranks)}, median {median(ranks):g}"))
        facts.append(("energy", f"kept {100 * min(energies):.4g} to {100 * max(energies):.4g} % of the change"))
        facts.append(
            ("error", f"of merging back: {100 * median(errors):.3g} % of the change (median), {worst.name} worst")
        )
    if report.left and not report.extracted:
        facts.append(("left", f"{len(report.left)} tensors of the base"))
    if report.dropped:
        facts.append(("dropped", dropped_text(report.dropped)))
    return facts
