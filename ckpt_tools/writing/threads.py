"""Fill files on threads of this process: a bounded number of tasks at a time, until one fails or the run ends."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from threadpoolctl import threadpool_limits

from ckpt_tools.writing.file_job import FileJob, Task, share_tasks
from ckpt_tools.writing.interrupts import HeldInterrupts
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.sharing import find_shares

__all__ = ["fill_files"]


def fill_files(jobs: Sequence[FileJob], budget: Budget, held: HeldInterrupts) -> None:
    """Fill files that are open at the same time; none is open when this ends.

    Args:
        jobs: The files.
        budget: Threads, and how much is read at a time.
        held: Interruptions that end the work.
    """
    shares = find_shares([job.entry for job in jobs])
    tasks = [task for share in shares for task in share_tasks(share, jobs, budget)]
    tasks += _interleaved([job.own_tasks() for job in jobs], budget.threads)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(budget.threads, thread_name_prefix="write") as pool:
        try:
            _run_bounded(pool, tasks, 2 * budget.threads, held)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for job in jobs:
                job.close()


def _interleaved(groups: Sequence[Sequence[Task]], width: int) -> Iterator[Task]:
    """Tasks of so many files in turn, of the next file where one has none left.

    A file system lets one thread at a time write to a file, so each thread has one of its own; and those that are done
    are done early, for a run that takes over.
    """
    waiting = deque(iter(group) for group in groups)
    active: deque[Iterator[Task]] = deque()
    while waiting or active:
        while waiting and len(active) < width:
            active.append(waiting.popleft())
        tasks = active.popleft()
        task = next(tasks, None)
        if task is not None:
            active.append(tasks)
            yield task


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
            held.raise_pending()
            running.add(pool.submit(guarded, task))
        for future in running:
            future.result()
        held.raise_pending()
    except BaseException:
        stop.set()
        raise
