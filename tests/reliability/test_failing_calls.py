"""A call that fails: no room, a broken disk, an interruption, a write that does less than it was asked for.

The command ends with 7 and says why, nothing is left and what was there is as it was; or the call did not matter, and
the output is complete. Then the same command succeeds once the disk does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import Case
from crashing import Bench, takes_room
from thoroughness import chosen_cases, chosen_points, is_thorough
from tracing import Call, Shorten

Tell = Callable[[str, object], None]

_WRITES = ("write", "pwrite64", "copy_file_range")
_SYNCS = ("fsync", "fdatasync")


def errors_of(call: Call) -> tuple[int, ...]:
    """What a call may fail with."""
    if call.name in ("flock", "sync_file_range"):
        return (errno.EIO,)
    if takes_room(call):
        return (errno.ENOSPC, errno.EIO, errno.EINTR)
    return (errno.EIO, errno.EINTR)


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_a_call_that_fails_leaves_the_old_state_or_the_new_one(disk: Path, case: Case, record_property: Tell) -> None:
    bench = Bench(disk, case)
    tried = 0
    for number in chosen_points(len(bench.calls)):
        for code in errors_of(bench.calls[number - 1]):
            bench.fail(number, code)
            tried += 1
    bench.check_inputs()
    record_property("failures", tried)
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_a_disk_that_is_full_from_any_call_on_leaves_the_old_state(
    disk: Path, case: Case, record_property: Tell
) -> None:
    bench = Bench(disk, case)
    points = [call.number for call in bench.calls if takes_room(call)]
    points = [points[index - 1] for index in chosen_points(len(points))]
    for number in points:
        ended = bench.fail(number, errno.ENOSPC, ever_after=True)
        if ended.code == 7 and "no space left" not in ended.err:
            bench.wrong.append(f"call {number}: {ended.err}")
    record_property("failures", len(points))
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_a_sync_that_fails_is_never_taken_for_success(disk: Path, case: Case, record_property: Tell) -> None:
    bench = Bench(disk, case)
    points = [call.number for call in bench.calls if call.name in _SYNCS]
    for number in points if is_thorough() else points[:: max(len(points) // 4, 1)]:
        if bench.fail(number, errno.EIO).code != 7:
            bench.wrong.append(f"call {number}: no exit 7")
        record_property("failures", 1)
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_writes_that_do_less_than_they_were_asked_for_go_on(disk: Path, case: Case, record_property: Tell) -> None:
    bench = Bench(disk, case)
    points = [call.number for call in bench.calls if call.name in _WRITES and call.length > 1]
    points = [points[index - 1] for index in chosen_points(len(points))]
    for number in points:
        bench.alter(f"one byte at call {number}", lambda call, at=number: Shorten(1) if call.number == at else None)
    bench.alter("all writes of 7 bytes at most", lambda call: Shorten(7) if call.length > 7 else None)
    record_property("short writes", len(points))
    record_property("lost", len(bench.wrong))
    assert not bench.wrong, "\n".join(bench.wrong)
