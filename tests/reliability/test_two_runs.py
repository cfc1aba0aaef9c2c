"""Others that are at work at the same time: a second run of the same command, readers, and who changes an input.

A run is stopped at a call, the other one does its work, and the first goes on: there is no chance in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import Case
from crashing import Bench
from thoroughness import chosen_cases, chosen_points

Tell = Callable[[str, object], None]

# Runs of parts wait for each other, for seconds.
CASES = [case for case in chosen_cases() if "in parts" not in case.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_of_two_runs_one_wins_and_the_other_ends_with_8(disk: Path, case: Case, record_property: Tell) -> None:
    bench = Bench(disk, case)
    points = chosen_points(len(bench.calls))
    for number in points:
        bench.meet(number)
    record_property("second runs", len(points))
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_readers_see_the_old_output_or_the_new_one_at_every_call(disk: Path, case: Case, record_property: Tell) -> None:
    bench = Bench(disk, case)
    record_property("looks", bench.watch())
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_an_input_that_is_written_to_calls_the_run_off_or_came_too_late(
    disk: Path, case: Case, record_property: Tell
) -> None:
    bench = Bench(disk, case)
    points = sorted({2, *chosen_points(len(bench.calls))})
    called_off = sum(bench.disturb(number) for number in points)
    if not called_off and not case.reads_first:  # a few points may all lie before the first read or behind the last one
        called_off = any(bench.disturb(number) for number in range(1, len(bench.calls) + 1) if number not in points)
    record_property("changes", len(points))
    record_property("lost", len(bench.wrong))
    assert called_off or case.reads_first, "no change was noticed: the test proves nothing"
    assert not bench.wrong, "\n".join(bench.wrong)
