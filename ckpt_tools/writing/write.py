"""Execute a plan: copy what is untouched, compute the rest in bands, on threads, and publish the whole at once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.tensors.lazy import Statistics
from ckpt_tools.tensors.sources import check_unchanged, close_sources
from ckpt_tools.writing.atomic import Workspace, claim_output
from ckpt_tools.writing.copying import Copy, copy_range, write_at
from ckpt_tools.writing.file_job import FileJob, Measured, Task, add_up, load_measured, share_tasks
from ckpt_tools.writing.interrupts import HeldInterrupts, hold_interrupts
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputBytes, OutputCopy, OutputFile, Plan
from ckpt_tools.writing.sharing import find_shares
from surgery.errors import Problem, ResourceError

__all__ = ["Outcome", "execute"]

_NOTHING_WRITTEN = "nothing was written"

# Files that are open at the same time, since they share tensors; 1,024 is a common limit of a process.
_OPEN_FILES = 128


@dataclass(slots=True)
class Outcome:
    """What an execution did.

    Attributes:
        measured: What was measured of computed tensors.
        bytes_written: Bytes that this run wrote.
        resumed: Files that a killed run of the same plan had completed, and this one took over.
    """

    measured: Measured = field(default_factory=dict)
    bytes_written: int = 0
    resumed: list[str] = field(default_factory=list)

    @property
    def statistics(self) -> dict[str, Statistics]:
        """What was measured, by the name of the output tensor; computed tensors only."""
        return add_up(self.measured)

    def add(self, measured: Measured) -> None:
        """Add what was measured when a file was written."""
        for name, places in measured.items():
            self.measured.setdefault(name, {}).update(places)


def execute(
    plan: Plan,
    *,
    force: bool = False,
    budget: Budget | None = None,
    progress: Progress = SILENT,
    approve: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Write a plan's output: all of it, or nothing.

    Args:
        plan: What to write.
        force: Replace an existing output.
        budget: Threads and memory; by default a thread for each core.
        progress: What is told how far it is.
        approve: Called when everything is written and before it is published; raises to call it off.

    Raises:
        OutputExistsError: The output exists and `force` is not set, or another run writes it.
        ResourceError: The disk is full, or an I/O call failed.
        InputChangedError: An input was modified meanwhile.
        KeyboardInterrupt: The run was interrupted; its argument says whether the output was published.
    """
    budget = budget or Budget()
    outcome = Outcome()
    claim = claim_output(plan.output, plan.digest(), is_folder=plan.is_folder, force=force)
    with hold_interrupts("the output is complete") as held, claim as workspace:
        try:
            with threadpool_limits(1, "blas"):
                _write_entries(plan, workspace, budget, progress, outcome, held)
            for source in plan.sources():
                check_unchanged(source)
        except OSError as error:
            raise _failed(plan.output, error) from error
        finally:
            progress.finish()
            close_sources()
        approve(outcome)
        held.raise_pending(_NOTHING_WRITTEN)
        try:
            workspace.publish()
        except OSError as error:
            raise _failed(plan.output, error) from error
    return outcome


def _failed(output: Path, error: OSError) -> ResourceError:
    remedies = {
        errno.ENOSPC: "Free some room or choose another place with -o",
        errno.EDQUOT: "Raise the quota or choose another place with -o",
    }
    found = (error.strerror or str(error)).lower()
    return ResourceError(Problem(str(output), f"writing failed: {found}", remedy=remedies.get(error.errno or 0, "")))


def _write_entries(
    plan: Plan, workspace: Workspace, budget: Budget, progress: Progress, outcome: Outcome, held: HeldInterrupts
) -> None:
    files: list[OutputFile] = []
    for file in plan.files():
        measured = load_measured(workspace, file.name) if workspace.is_complete(file.name) else None
        if measured is None:
            files.append(file)
        else:
            outcome.add(measured)
            outcome.resumed.append(file.name)
    progress.start(sum(file.nbytes() for file in files), "writing")
    for start in range(0, len(files), _OPEN_FILES):
        for job in _write_files(files[start : start + _OPEN_FILES], workspace, budget, progress, held):
            outcome.add(job.measured())
            outcome.bytes_written += job.size
    for entry in plan.entries:
        if not isinstance(entry, OutputFile):
            held.raise_pending(_NOTHING_WRITTEN)
            outcome.bytes_written += _write_companion(workspace, entry)


def _write_files(
    files: Sequence[OutputFile], workspace: Workspace, budget: Budget, progress: Progress, held: HeldInterrupts
) -> list[FileJob]:
    """Write files that are open at the same time."""
    jobs = [FileJob(file, workspace, budget, progress) for file in files]
    tasks = [task for share in find_shares(files) for task in share_tasks(share, jobs, budget)]
    tasks += [task for job in jobs for task in job.own_tasks()]
    with ThreadPoolExecutor(budget.threads, thread_name_prefix="write") as pool:
        try:
            _run_bounded(pool, tasks, 2 * budget.threads, held)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for job in jobs:
                job.close()
    return jobs


def _run_bounded(pool: ThreadPoolExecutor, tasks: Iterable[Task], limit: int, held: HeldInterrupts) -> None:
    """Run tasks in order with at most `limit` submitted at a time; the first failure or interruption ends it."""
    running: set[Future[None]] = set()
    stop = threading.Event()

    def guarded(task: Task) -> None:
        if stop.is_set() or held.pending:
            return
        try:
            task()
        except BaseException:
            stop.set()
            raise

    try:
        for task in tasks:
            if len(running) >= limit:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            held.raise_pending(_NOTHING_WRITTEN)
            running.add(pool.submit(guarded, task))
        for future in running:
            future.result()
        held.raise_pending(_NOTHING_WRITTEN)
    except BaseException:
        stop.set()
        raise


def _write_companion(workspace: Workspace, entry: OutputBytes | OutputCopy) -> int:
    part = workspace.part(entry.name)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("xb", buffering=0) as file:
        if isinstance(entry, OutputBytes):
            size = len(entry.data)
            write_at(file.fileno(), memoryview(entry.data), 0)
        else:
            size = entry.source.size
            copy_range(Copy(entry.source, 0, 0, size), file.fileno())
        os.fsync(file.fileno())
    workspace.complete(entry.name)
    return size
