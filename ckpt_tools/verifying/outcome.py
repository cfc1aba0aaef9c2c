"""What a failed verification tells: the first offenders, and how many more there are."""

from __future__ import annotations

from ckpt_tools.reports import VerifyReport
from surgery.errors import Problem

__all__ = ["problems_of"]

_MAX_PROBLEMS = 10


def problems_of(report: VerifyReport) -> list[Problem]:
    """The first of a report's offenders; another base first, since all else follows from it."""
    problems = []
    plain = [one for one in report.offenders if one.expected.startswith("the base's")]
    untouched = len(report.equal) + len(report.cast) + len(plain)
    if len(plain) > 1 and len(plain) > untouched / 2:
        found = f"{len(plain)} of {untouched} tensors that no adapter changes differ from {report.base}"
        problems.append(Problem(report.merged, found, "what was merged from this base", "It was made of another base"))
    problems += [Problem(one.where, one.found, one.expected, one.remedy) for one in report.offenders[:_MAX_PROBLEMS]]
    more = len(report.offenders) - _MAX_PROBLEMS
    if more > 0:
        problems.append(Problem(report.merged, f"and {more} more", remedy="--json lists them all"))
    return problems
