"""An injection's report in a few lines for a terminal; `--json` has all of it."""

from __future__ import annotations

from collections import Counter

from ckpt_tools.cli.common import printable
from ckpt_tools.cli.summary import dropped_text, volume_facts
from ckpt_tools.reports import InjectReport
from surgery.methods import method_of

__all__ = ["summarise"]

_MAX_NAMES = 3


def summarise(report: InjectReport) -> str:
    """What an injection did, or would do."""
    verb = "would inject" if report.dry_run else "injected"
    title = method_of(report.pet_type).title
    lines = [f"{verb} {title} ({report.config}) into {report.base} -> {report.output}"]
    lines += [f"  {label:<10} {text}" for label, text in _facts(report)]
    lines += [f"  {label:<10} {text}" for label, text in volume_facts(report)]
    return "\n".join(map(printable, lines))


def _facts(report: InjectReport) -> list[tuple[str, str]]:
    facts = []
    if report.layers:
        kinds = Counter(layer.rpartition(".")[2] for layer in report.layers)
        shown = ", ".join(f"{count} {name}" for name, count in list(kinds.items())[:_MAX_NAMES])
        facts.append(("layers", f"{len(report.layers)}: {shown}{', ...' if len(kinds) > _MAX_NAMES else ''}"))
    if report.near_misses:
        first = report.near_misses[0]
        facts.append(("near miss", f"{len(report.near_misses)}: {first.layer} {first.reason}"))
    if report.adapter is not None:
        names = f"; names {report.adapter_names}" if report.adapter_names else ""
        grafted = len(report.added) + len(report.replaced)
        facts.append(("adapter", f"{report.adapter}: {grafted} tensors{names}"))
    begun = "" if report.adapter is not None or not report.added else f", seed {report.seed}"
    facts.append(("added", f"{len(report.added)} parameters{begun}"))
    if not report.only_delta:
        cast = f"; {len(report.cast)} cast" if report.cast else ""
        facts.append(("copied", f"{len(report.copied)} tensors{cast}"))
    if report.dropped:
        facts.append(("dropped", dropped_text(report.dropped)))
    percent = 100 * report.trainable_elements / max(report.total_elements, 1)
    facts.append(
        (
            "trainable",
            f"{report.trainable_parameters} parameters, {report.trainable_elements:,} numbers ({percent:.3g} %)",
        )
    )
    if report.dst_ranks:
        facts.append(("layout", f"{report.dst_ranks} ranks ({report.dst_strategy})"))
    if report.network_checked:
        facts.append(("network", "built, and it is the same" if report.dry_run else "built, and the output loads"))
    return facts
