"""A process that is killed at any call that touches its output, and power that is lost then.

Whatever moment it is, each output is the old one or the new one, whole; and the same command, run again, leaves the new
one and nothing besides. `docs/reliability.md` says how, and what `make reliability` found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import Case
from crashing import Bench
from durable import Durable, take_tree
from thoroughness import chosen_cases, chosen_points
from tracing import run_traced

Tell = Callable[[str, object], None]


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_a_kill_and_a_loss_of_power_at_any_call_lose_nothing(disk: Path, case: Case, record_property: Tell) -> None:
    bench = Bench(disk, case)
    points = chosen_points(len(bench.calls) + 1)
    for number in points:
        bench.kill(number)
    bench.check_inputs()
    record_property("kills", len(points))
    record_property("states that a next run began with", bench.states)
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)


@pytest.mark.parametrize("case", chosen_cases()[:1], ids=lambda case: case.name)
def test_calls_that_only_look_and_read_are_no_better_moment(disk: Path, case: Case, record_property: Tell) -> None:
    bench = Bench(disk, case, with_reading=True)
    points = chosen_points(len(bench.calls) + 1)
    for number in points:
        bench.kill(number, loses=False)
    record_property("kills", len(points))
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)


def test_the_model_of_lost_power_loses_what_was_not_synced(disk: Path) -> None:
    """Without this, a model that forgets nothing would prove nothing."""

    def write() -> None:
        for name in ("synced", "named", "unsynced"):
            with open(disk / "d" / name, "wb") as file:
                file.write(b"data")
                file.flush()
                if name != "unsynced":
                    os.fsync(file.fileno())
            if name == "synced":
                folder = os.open(disk / "d", os.O_RDONLY)
                os.fsync(folder)

    (disk / "d").mkdir()
    durable = Durable(disk / "d")
    ended = run_traced(write, disk / "d", disk / "log", durable.before, after=durable.after)
    assert ended.code == 0, ended.err
    assert take_tree(disk / "d") == {"synced": b"data", "named": b"data", "unsynced": b"data"}
    assert durable.forgetful() == {"synced": b"data"}
    assert durable.orderly(lambda size: b"\0" * size) == {"synced": b"data", "named": b"data", "unsynced": b"\0" * 4}
