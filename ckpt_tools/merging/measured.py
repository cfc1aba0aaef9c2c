"""What a merge measured while it wrote: what must not be published, and what the report says of each weight."""

from __future__ import annotations

import math
from dataclasses import replace

from ckpt_tools.reports import FoldedWeight, MergeReport
from ckpt_tools.tensors.lazy import Statistics
from ckpt_tools.writing.write import Outcome
from surgery.errors import NonFiniteError, Problem

__all__ = ["refuse_nonfinite", "with_statistics"]


def refuse_nonfinite(outcome: Outcome) -> None:
    """Refuse an output with NaN, Inf or an overflow.

    Raises:
        NonFiniteError: All weights that have some.
    """
    problems = []
    for name, measured in outcome.statistics.items():
        if measured.nonfinite_input:
            found = f"{measured.nonfinite_input} NaN or Inf in the base"
            remedy = "The file is damaged or its training diverged: take another, or accept it with --allow-nonfinite"
        elif measured.nonfinite_output:
            found = f"{measured.nonfinite_output} elements beyond the range of the output type, or NaN"
            remedy = "Choose a wider --dtype, or accept it with --allow-nonfinite"
        else:
            continue
        problems.append(Problem(name, found, "finite values", remedy))
    if problems:
        raise NonFiniteError(problems)


def with_statistics(report: MergeReport, outcome: Outcome) -> MergeReport:
    """The report with what was measured, and warnings of updates that changed nothing."""
    statistics = outcome.statistics
    weights = tuple(_measured(weight, statistics.get(weight.name)) for weight in report.weights)
    idle = [weight.name for weight in weights if weight.delta_norm == 0.0]
    swallowed = [weight.name for weight in weights if weight.delta_norm and weight.unchanged_share == 1.0]
    warnings = report.warnings
    if idle:
        warnings += (f"{len(idle)} weights did not change, since the delta is zero: {idle[0]}, ...",)
    if swallowed:
        found = f"{len(swallowed)} weights did not change, since rounding swallowed the delta: {swallowed[0]}, ..."
        warnings += (found,)
    return replace(report, weights=weights, warnings=warnings)


def _measured(weight: FoldedWeight, statistics: Statistics | None) -> FoldedWeight:
    if statistics is None or not statistics.elements:
        return weight
    weight_norm, delta_norm = math.sqrt(statistics.weight_square), math.sqrt(statistics.delta_square)
    return replace(
        weight,
        weight_norm=weight_norm,
        delta_norm=delta_norm,
        relative_delta=delta_norm / weight_norm if weight_norm else None,
        unchanged_share=statistics.unchanged / statistics.elements,
    )
