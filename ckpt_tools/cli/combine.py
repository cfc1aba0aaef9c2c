"""pet-merge --adapters-only: adapters to one adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

from ckpt_tools.cli.common import make_progress, print_report, printable, refuse_others
from ckpt_tools.cli.page import page_writer
from ckpt_tools.cli.summary import ROUNDING, dropped_text, loss_text, percent, volume_facts
from ckpt_tools.reports import CombineReport

__all__ = ["join", "summarise"]

_TAKEN = (
    *("alpha", "scaling", "config", "weight", "method", "density", "majority_sign", "seed", "resize_rank", "energy"),
    *("adapter_strategy", "step", "replicated", "allow_other_base", "check_crc", "dtype", "format", "names"),
    *("output", "force", "dry_run", "threads", "max_memory", "digest", "executor"),
)
_OF_THE_COMMAND = ("base", "adapters", "as_json", "quiet", "adapters_only", "html")


def join(
    adapters: tuple[str, ...], options: Mapping[str, Any], html: str | None, *, as_json: bool, quiet: bool
) -> None:
    """Combine adapters with the options of pet-merge.

    Raises:
        UsageError: An option was given that is about a base.
    """
    from ckpt_tools.joining import combine

    refuse_others("--adapters-only", (*_TAKEN, *_OF_THE_COMMAND), "no options about a base, as there is none")
    write_page = page_writer(html, options, *adapters)
    taken = {name: options[name] for name in _TAKEN}
    taken["names"] = "" if taken["names"] == "keep" and taken["format"] != "keep" else taken["names"]
    report = combine(*adapters, **taken, progress=make_progress(quiet))
    write_page(report)
    print_report(report, summarise, as_json=as_json, quiet=quiet)


def summarise(report: CombineReport) -> str:
    """What a combination did, or would do."""
    verb = "would combine" if report.dry_run else "combined"
    lines = [f"{verb} {' + '.join(adapter.path for adapter in report.adapters)} -> {report.output}"]
    for number, adapter in enumerate(report.adapters):
        layers = [layer for layer in report.layers if number in layer.adapters]
        ranks = sorted({layer.ranks[layer.adapters.index(number)] for layer in layers})
        origin = adapter.config or "the command line"
        text = f"{', '.join(adapter.families)}; {len(layers)} layers; rank {', '.join(map(str, ranks)) or '-'}"
        text += f"; weight {adapter.weight:g}; scale from {origin}"
        lines.append(f"  adapter    {text}{f'; names {adapter.names}' if adapter.names else ''}")
    shared = sum(len(layer.adapters) > 1 for layer in report.layers)
    counts = Counter(layer.rank for layer in report.layers)
    lines.append(f"  method     {report.how}")
    lines.append(f"  layers     {len(report.layers)}, {shared} of them in several adapters")
    lines.append(f"  rank       {', '.join(f'{rank} ({count} layers)' for rank, count in sorted(counts.items()))}")
    lines += [f"  {label:<10} {text}" for label, text in (*_errors(report), *volume_facts(report))]
    if report.dropped:
        lines.append(f"  dropped    {dropped_text(report.dropped)}")
    return "\n".join(map(printable, lines))


def _errors(report: CombineReport) -> list[tuple[str, str]]:
    """How far the result is from what the method gives, and from the plain sum."""
    errors = [layer.relative_error for layer in report.layers]
    worst = max(report.layers, key=lambda layer: layer.relative_error)
    facts = [("error", f"{loss_text(errors)}, in {worst.name}" if max(errors) > ROUNDING else loss_text(errors))]
    distances = [layer.distance_from_sum for layer in report.layers if layer.distance_from_sum is not None]
    if report.method != "cat" and distances:
        far = f"{percent(median(distances))} (median), at most {percent(max(distances))}"
        facts.append(("sum", f"the plain weighted sum is {far} of its norm away"))
    return facts
