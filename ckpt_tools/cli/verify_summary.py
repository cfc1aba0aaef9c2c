"""A verification's report in a few lines for a terminal; `--json` has all of it."""

from __future__ import annotations

from statistics import median

from ckpt_tools.cli.common import printable
from ckpt_tools.reports import VerifyReport

__all__ = ["summarise"]


def summarise(report: VerifyReport) -> str:
    """What a verification found."""
    inputs = " + ".join([report.base, *(adapter.path for adapter in report.adapters if adapter.path != report.base)])
    verb = "verified" if report.passed else "NOT verified"
    lines = [f"{verb} {report.merged} = {inputs}"]
    lines += [f"  {label:<10} {text}" for label, text in _facts(report)]
    return "\n".join(map(printable, lines))


def _facts(report: VerifyReport) -> list[tuple[str, str]]:
    facts = []
    for adapter in report.adapters:
        uses = [use for weight in report.weights for use in weight.adapters if use.adapter == adapter.path]
        scales = sorted({use.scaling for use in uses if use.scaling is not None})
        origin = adapter.config or "the command line"
        facts.append(("scaling", f"{', '.join(f'{scale:g}' for scale in scales) or '-'} ({origin})"))
    facts.append(("weights", f"{len(report.weights)} changed; {len(report.equal)} equal; {len(report.cast)} cast"))
    measured = [weight for weight in report.weights if weight.error_ulp is not None]
    if measured:
        worst = max(measured, key=lambda weight: weight.error_ulp or 0.0)
        at = f"{worst.name} {list(worst.error_at)}" if worst.error_at is not None else worst.name
        facts.append(("error", f"at most {worst.error_ulp:.4g} ULP of the result, at {at}"))
        limit = max(weight.error_of_limit or 0.0 for weight in measured)
        facts.append(("limit", f"errors take at most {100 * limit:.3g} % of what rounding may"))
        shares = [weight.swamped_share or 0.0 for weight in measured]
        facts.append(("rounding", f"swallowed the change of {100 * median(shares):.3g} % of the elements (median)"))
    if report.sample < 1:
        chances = f"{100 * report.chance_of_one_percent:.4g} %", f"{100 * report.chance_of_one_element:.3g} %"
        facts.append(
            (
                "sample",
                f"{100 * report.sampled_share:.3g} % of the elements: finds what is wrong in 1 % of the stretches "
                f"with a chance of {chances[0]}, a single wrong element with {chances[1]}",
            )
        )
    if report.offenders:
        facts.append(("wrong", f"{len(report.offenders)} tensors"))
    return facts
