"""Names that a mistaken one may have meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from difflib import SequenceMatcher
from heapq import nlargest

__all__ = ["ENOUGH_PROBLEMS", "near_names"]

ENOUGH_PROBLEMS = 20
"""Near names are looked for until so many problems are known: it takes time, and who sees so many needs no more."""

_CLOSE_ENOUGH = 0.5
_COMPARED = 48
# Of longer names the ends are compared: the time grows with the square of the length, and an input may have any names.
_MAX_CHARACTERS = 256


def near_names(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """The candidates that resemble a name most, best first.

    Comparing letter by letter costs a millisecond for a dozen candidates, and a large checkpoint has 10^4 or more: so
    only those that share most components (between dots) with the name are compared, or most letters where none does.

    Args:
        name: The name that was not found.
        candidates: The names that exist.
        n: How many to return at most.
    """
    pool = list(candidates)
    shared = _most_alike(name.split("."), ((candidate, candidate.split(".")) for candidate in pool))
    if len(shared) < n:
        shared = _most_alike(list(name), ((candidate, list(candidate)) for candidate in pool))
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name[-_MAX_CHARACTERS:])
    scored = []
    for candidate in shared:
        matcher.set_seq1(candidate[-_MAX_CHARACTERS:])
        ratio = matcher.ratio()
        if ratio >= _CLOSE_ENOUGH:
            scored.append((ratio, candidate))
    # Equal scores go by name, so that the same input gives the same message.
    return [candidate for _, candidate in sorted(scored, key=lambda item: (-item[0], item[1]))[:n]]


def _most_alike(parts: list[str], candidates: Iterable[tuple[str, list[str]]]) -> list[str]:
    wanted = Counter(parts)
    scored = []
    for candidate, others in candidates:
        # (wanted & Counter(others)).total() takes twenty times as long.
        left, common = dict(wanted), 0
        for part in others:
            if left.get(part):
                left[part] -= 1
                common += 1
        if common:
            scored.append((2 * common / (len(parts) + len(others)), candidate))
    return [candidate for _, candidate in nlargest(_COMPARED, scored)]
