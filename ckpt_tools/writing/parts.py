"""Parts of an output, for job arrays: `--ranks 0-63` writes the files of these ranks, a last call publishes all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ckpt_tools.writing.plan import Plan
from surgery.errors import Problem, UsageError

__all__ = ["Ranks", "parse_ranks", "part_of"]

_RANGE = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Some ranks.

    Attributes:
        ranges: They, in ascending order, without overlaps.
    """

    ranges: tuple[range, ...]

    def __contains__(self, rank: object) -> bool:
        return any(rank in one for one in self.ranges)

    def __str__(self) -> str:
        return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in self.ranges)


def parse_ranks(ranks: str | Iterable[int]) -> Ranks:
    """Ranks as a user gives them.

    Args:
        ranks: Numbers and ranges, both ends included, as `0-63` or `0-3,8`; or the numbers themselves.

    Raises:
        UsageError: It is something else, or there is none.
    """
    texts = ranks.split(",") if isinstance(ranks, str) else [str(rank) for rank in ranks]
    spans = []
    for text in texts:
        match = _RANGE.fullmatch(text)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if last < first:
            raise UsageError(Problem("--ranks", repr(text), "ranks such as 0-63 or 0-3,8"))
        spans.append((first, last))
    if not spans:
        raise UsageError(Problem("--ranks", "none", "ranks such as 0-63 or 0-3,8"))
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return Ranks(tuple(range(first, last + 1) for first, last in joined))


def part_of(plan: Plan, ranks: Ranks | None, count: int) -> Plan | None:
    """The part of a plan that some ranks are; None for all of it.

    Args:
        plan: The whole plan.
        ranks: Which ranks; None for all of it.
        count: How many ranks the output has; 0 for a whole one.

    Raises:
        UsageError: The output is whole, or has no such ranks.
    """
    if ranks is None:
        return None
    if not count:
        raise UsageError(Problem("--ranks", str(ranks), "an output for ranks", "Give --dst-strategy, or leave it out"))
    if ranks.ranges[-1][-1] >= count:
        raise UsageError(Problem("--ranks", str(ranks), f"ranks of 0-{count - 1}, as in --dst-strategy"))
    return plan.of_ranks(ranks)
