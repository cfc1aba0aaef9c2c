"""A run that fails leaves nothing, tells the first reason, and stops what has not begun."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lazy_cases import sliced, stored

from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics
from ckpt_tools.tensors.sources import open_source
from ckpt_tools.tensors.views import Constant
from ckpt_tools.writing import atomic, file_job
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import Entry, OutputBytes, OutputCopy, OutputFile, Plan
from ckpt_tools.writing.write import Outcome, execute
from surgery.errors import InputChangedError, NonFiniteError, Problem, ResourceError


class Computed(LazyTensor):
    """Zeros that are computed, and something that happens meanwhile."""

    def __init__(self, shape: tuple[int, ...], happens: Callable[[Region], object]) -> None:
        self.dtype, self.shape, self._happens = BY_NAME["fp32"], shape, happens

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        self._happens(region)
        return sliced(np.zeros(self.shape, np.float32), region).copy()


def fail(region: Region) -> None:
    raise ValueError(f"at {region}")


def plan_of(path: Path, *tensors: LazyTensor, extra: tuple[Entry, ...] = ()) -> Plan:
    named = tuple((str(number), tensor) for number, tensor in enumerate(tensors))
    return Plan(path, True, (OutputFile("x.ckpt", "ckpt", named), *extra))


def constant(*values: float) -> Constant:
    array = np.array(values, np.float32)
    return Constant(array, dtype_of(array))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_ends_the_run_and_leaves_nothing(tmp_path: Path, threads: int) -> None:
    with pytest.raises(ValueError, match="at "):
        execute(plan_of(tmp_path / "a" / "out", constant(1), Computed((5,), fail)), budget=Budget(threads, 1))
    assert list(tmp_path.iterdir()) == []


def test_what_has_not_begun_is_not_begun_when_something_fails(tmp_path: Path) -> None:
    begun: list[Region] = []

    def fail_at_first(region: Region) -> None:
        begun.append(region)
        if len(begun) == 1:
            fail(region)

    with pytest.raises(ValueError, match="at "):
        execute(plan_of(tmp_path / "out", Computed((10_000,), fail_at_first)), budget=Budget(2, 1))
    assert len(begun) < 10


def test_threads_that_are_at_work_end_before_the_run_does(tmp_path: Path) -> None:
    may_end, ended = threading.Event(), []

    def happen(region: Region) -> None:
        if region == ((0, 1),):
            may_end.wait(10)
            ended.append(region)
        elif region == ((1, 2),):
            may_end.set()
            fail(region)

    with pytest.raises(ValueError, match="at "):
        execute(plan_of(tmp_path / "out", Computed((2,), happen)), budget=Budget(2, 1))
    assert ended == [((0, 1),)]
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(region: Region) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan_of(tmp_path / "out", Computed((5,), interrupt)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_during_the_writing_ends_it_at_the_next_task(tmp_path: Path, threads: int) -> None:
    begun: list[Region] = []

    def interrupt(region: Region) -> None:
        begun.append(region)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # for the main thread to see it

    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        execute(plan_of(tmp_path / "out", Computed((50,), interrupt)), budget=Budget(threads, 1))
    assert len(begun) < 10
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_the_last_task_still_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        execute(plan_of(tmp_path / "out", constant(1)), approve=lambda outcome: signal.raise_signal(signal.SIGINT))
    assert list(tmp_path.iterdir()) == []


def test_a_signal_during_the_publishing_is_raised_when_the_output_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(workspace: atomic.Workspace) -> None:
        signal.raise_signal(signal.SIGINT)
        genuine(workspace)

    genuine = atomic.Workspace.put_in_place
    monkeypatch.setattr(atomic.Workspace, "put_in_place", publish)
    with pytest.raises(KeyboardInterrupt, match="the output is complete"):
        execute(plan_of(tmp_path / "out", constant(1)))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "x.ckpt"]


def test_an_outcome_that_is_not_approved_leaves_nothing(tmp_path: Path) -> None:
    seen: list[Outcome] = []

    def refuse(outcome: Outcome) -> None:
        seen.append(outcome)
        raise NonFiniteError(Problem("w", "NaN"))

    with pytest.raises(NonFiniteError):
        execute(plan_of(tmp_path / "a" / "out", Computed((5,), lambda region: None)), approve=refuse)
    assert seen[0].written == ["x.ckpt"]
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_keeps_the_output_that_was_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_bytes(b"old")
    with pytest.raises(ValueError, match="at "):
        execute(plan_of(tmp_path / "out", Computed((5,), fail)), force=True)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["out", "out/old"]


@pytest.mark.parametrize("change", ["written to", "replaced", "removed"])
@pytest.mark.parametrize("role", ["copied", "companion"])
def test_an_input_that_changes_during_the_run_is_noticed_at_its_end(tmp_path: Path, change: str, role: str) -> None:
    path = tmp_path / "in"
    tensor = stored(path, np.zeros(100, np.float32))
    data = path.read_bytes()

    def modify(region: Region) -> None:
        if change != "written to":
            path.rename(tmp_path / "elsewhere")
        if change != "removed":
            path.write_bytes(data)

    tensors: list[LazyTensor] = [tensor] if role == "copied" else []
    extra = (OutputCopy("in", open_source(path)),) if role == "companion" else ()
    # The change comes last, when every byte of the input has been copied.
    plan = plan_of(tmp_path / "out", *tensors, extra=extra)
    late = OutputFile("y.ckpt", "ckpt", (("late", Computed((1,), modify)),))
    entries = (*plan.entries, late) if role == "copied" else (late, *plan.entries)
    with pytest.raises(InputChangedError, match=f"{path}: "):
        execute(Plan(tmp_path / "out", True, entries), budget=Budget(1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "Free some room"), (errno.EIO, ""), (errno.EDQUOT, "quota")]
)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "preallocate"])
def test_a_disk_that_fails_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str, call: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_job if call == "preallocate" else os, call, refuse)
    with pytest.raises(ResourceError, match=f"out: writing failed: {os.strerror(code).lower()}.*{remedy}"):
        execute(plan_of(tmp_path / "out", constant(1, 2, 3)))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_little_at_a_time_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:5], offset))
    plan = plan_of(tmp_path / "out", constant(*range(100)), extra=(OutputBytes("small", bytes(range(50))),))
    execute(plan)
    assert (tmp_path / "out" / "small").read_bytes() == bytes(range(50))
    assert (tmp_path / "out" / "x.ckpt").read_bytes().endswith(np.arange(100, dtype=np.float32).tobytes())


def test_a_kernel_without_copies_and_promises_of_room_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = stored(tmp_path / "in", np.arange(5000, dtype=np.int16), cuts=(77, 4001))
    execute(plan_of(tmp_path / "one", tensor))

    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(file_job, "preallocate", os.ftruncate)
    execute(plan_of(tmp_path / "two", tensor))
    assert (tmp_path / "one" / "x.ckpt").read_bytes() == (tmp_path / "two" / "x.ckpt").read_bytes()


def test_descriptors_are_closed_whether_a_run_ends_well_or_not(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "in", np.zeros(10))
    before = len(list(Path("/proc/self/fd").iterdir()))
    execute(plan_of(tmp_path / "out", tensor))
    with pytest.raises(ValueError, match="at "):
        execute(plan_of(tmp_path / "other", tensor, Computed((5,), fail)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
