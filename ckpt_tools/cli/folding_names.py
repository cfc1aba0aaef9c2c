"""Names of layers that are alike, written once: `model.layers.0-31.attention.wq.weight`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

__all__ = ["block_of", "fold_names", "number_ranges"]

Entry = TypeVar("Entry")
_Indices = tuple[int, ...]

_NUMBER = re.compile(r"(?<![^.])(0|[1-9][0-9]{0,8})(?![^.])")  # a whole component; 007 would be another name as 7
_MAX_RUNS = 6


def fold_names(entries: Iterable[tuple[str, Hashable, Entry]]) -> list[tuple[str, list[Entry]]]:
    """Put entries together whose names differ in the numbers of layers alone.

    Args:
        entries: Name, what has to be the same in all that are put together, and the entry.

    Returns:
        The names, in the order of the first of each, with the entries behind them. Every name that a folded one
        stands for is there: numbers of several components are folded where all combinations exist.
    """
    groups: dict[tuple[tuple[str, ...], Hashable], dict[_Indices, Entry]] = {}
    for name, kind, entry in entries:
        pieces = _NUMBER.split(name)
        groups.setdefault((tuple(pieces[::2]), kind), {})[tuple(map(int, pieces[1::2]))] = entry
    folded = []
    for (texts, _), found in groups.items():
        for axes in _boxes(list(found)):
            ranges = [number_ranges(axis) for axis in axes]
            name = texts[0] + "".join(part for pair in zip(ranges, texts[1:], strict=True) for part in pair)
            folded.append((name, [entry for indices, entry in found.items() if _within(indices, axes)]))
    return folded


def block_of(name: str) -> str:
    """The layer that a parameter is in: its name up to the first number; what stands first where it has none."""
    match = _NUMBER.search(name)
    return name[: match.end()] if match else name.rpartition(".")[0] or name


def number_ranges(numbers: Iterable[int]) -> str:
    """Numbers as runs: `0-3,7`; those at one distance as `0-30/2`."""
    ordered = sorted(numbers)
    runs: list[list[int]] = []
    for number in ordered:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    steps = {after - before for before, after in itertools.pairwise(ordered)}
    if len(ordered) > 2 and len(steps) == 1 and steps != {1}:
        return f"{ordered[0]}-{ordered[-1]}/{steps.pop()}"
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ",".join(texts[:_MAX_RUNS] + ([f"...-{ordered[-1]}"] if len(texts) > _MAX_RUNS else []))


def _boxes(indices: Sequence[_Indices]) -> list[tuple[frozenset[int], ...]]:
    """Sets of numbers, one for each place, whose combinations are all the given ones, each once."""
    if not indices[0]:
        return [()]
    rests: dict[int, list[_Indices]] = {}
    for first, *rest in indices:
        rests.setdefault(first, []).append(tuple(rest))
    alike: dict[frozenset[_Indices], list[int]] = {}
    for first, found in rests.items():
        alike.setdefault(frozenset(found), []).append(first)
    return [(frozenset(firsts), *axes) for firsts in alike.values() for axes in _boxes(rests[firsts[0]])]


def _within(indices: _Indices, axes: Sequence[frozenset[int]]) -> bool:
    return all(index in axis for index, axis in zip(indices, axes, strict=True))
