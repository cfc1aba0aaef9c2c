"""Execute a plan: copy what is untouched, compute the rest in bands, on threads, and publish the whole at once."""

from __future__ import annotations

import errno
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ckpt_tools.formats.ckpt import crc_trailer
from ckpt_tools.formats.model import Payload
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics, bands
from ckpt_tools.tensors.sources import check_unchanged, close_sources
from ckpt_tools.tensors.views import unreshaped
from ckpt_tools.writing.atomic import Workspace, claim_output
from ckpt_tools.writing.copying import WRITEBACK_BYTES, Copy, coalesce, copies_of, copy_range, group, write_at
from ckpt_tools.writing.interrupts import HeldInterrupts, hold_interrupts
from ckpt_tools.writing.linux import preallocate, start_writeback
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputBytes, OutputCopy, OutputFile, Plan
from surgery.errors import Problem, ResourceError

__all__ = ["Outcome", "execute"]

_NOTHING_WRITTEN = "nothing was written"

_CRC_CHUNK = 4 * 2**20


@dataclass(slots=True)
class Outcome:
    """What an execution did.

    Attributes:
        statistics: What was measured, by the name of the output tensor; computed tensors only.
        bytes_written: Bytes that this run wrote.
        resumed: Files that a killed run of the same plan had completed, and this one took over.
    """

    statistics: dict[str, Statistics] = field(default_factory=dict)
    bytes_written: int = 0
    resumed: list[str] = field(default_factory=list)


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
    jobs: list[_FileJob] = []
    for entry in plan.entries:
        if isinstance(entry, OutputFile):
            measured = _load_statistics(workspace, entry.name) if workspace.is_complete(entry.name) else None
            if measured is None:
                jobs.append(_FileJob(entry, workspace, budget, progress))
            else:
                outcome.statistics.update(measured)
                outcome.resumed.append(entry.name)
    progress.start(sum(job.size for job in jobs), "writing")
    with ThreadPoolExecutor(budget.threads, thread_name_prefix="write") as pool:
        try:
            _run_bounded(pool, (task for job in jobs for task in job.tasks()), 2 * budget.threads, held)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for job in jobs:
                job.close()
    for job in jobs:
        outcome.statistics.update(job.statistics())
        outcome.bytes_written += job.size
    for entry in plan.entries:
        if not isinstance(entry, OutputFile):
            held.raise_pending(_NOTHING_WRITTEN)
            outcome.bytes_written += _write_companion(workspace, entry)


def _run_bounded(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], None]], limit: int, held: HeldInterrupts
) -> None:
    """Run tasks in order with at most `limit` submitted at a time; the first failure or interruption ends it."""
    running: set[Future[None]] = set()
    stop = threading.Event()

    def guarded(task: Callable[[], None]) -> None:
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


class _FileJob:
    """One checkpoint file on its way: the tasks that fill it, and what ends it when the last of them is done."""

    def __init__(self, entry: OutputFile, workspace: Workspace, budget: Budget, progress: Progress) -> None:
        self._entry = entry
        self._workspace = workspace
        self._budget = budget
        self._progress = progress
        self._layout = entry.layout()
        self.size = self._layout.size + (len(crc_trailer(0)) if entry.crc else 0)
        self._lock = threading.Lock()
        self._descriptor = -1
        self._open_tasks = 0
        self._measured: dict[str, list[tuple[int, Statistics]]] = {}

    def tasks(self) -> Iterator[Callable[[], None]]:
        """Open the file, and yield what fills it."""
        tasks = list(self._make_tasks())
        self._open_tasks = len(tasks)
        part = self._workspace.part(self._entry.name)
        part.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        preallocate(self._descriptor, self.size)
        for task in tasks:
            yield lambda task=task: self._do(task)  # type: ignore[misc]  # binds the loop's variable

    def close(self) -> None:
        """Close the file if a failure left it open."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def statistics(self) -> dict[str, Statistics]:
        """What was measured, summed in an order that does not depend on the threads."""
        totals = {}
        for name, measured in self._measured.items():
            totals[name] = Statistics()
            for _, part in sorted(measured, key=lambda item: item[0]):
                totals[name].add(part)
        return totals

    def _do(self, task: Callable[[], int]) -> None:
        self._progress.advance(task())
        with self._lock:
            self._open_tasks -= 1
            is_last = self._open_tasks == 0
        if is_last:
            self._finish()

    def _finish(self) -> None:
        if self._entry.crc:
            self._progress.advance(_append_crc(self._descriptor, self._layout.size))
        os.fsync(self._descriptor)
        self.close()
        _save_statistics(self._workspace, self._entry.name, self.statistics())
        self._workspace.complete(self._entry.name)

    def _make_tasks(self) -> Iterator[Callable[[], int]]:
        yield self._write_literals
        stretches: dict[int, list[Payload]] = {}
        for payload in self._layout.payloads:
            stretches.setdefault(payload.tensor, []).append(payload)
        copies: list[Copy] = []
        for index, payloads in stretches.items():
            name, tensor = self._entry.tensors[index]
            runs = tensor.byte_runs()
            if runs is not None:
                copies.extend(copies_of(tensor, payloads))
                continue
            computed = unreshaped(tensor)
            for number, region in enumerate(bands(computed.shape, self._budget.band_elements)):
                yield self._band_task(name, computed, payloads, number, region)
        for pieces in group(coalesce(copies)):
            yield self._copy_task(pieces)

    def _write_literals(self) -> int:
        for offset, data in self._layout.literals:
            write_at(self._descriptor, memoryview(data), offset)
        return sum(len(data) for _, data in self._layout.literals)

    def _band_task(
        self, name: str, tensor: LazyTensor, payloads: list[Payload], number: int, region: Region
    ) -> Callable[[], int]:
        def compute() -> int:
            statistics = Statistics()
            begin = end = _flat_start(tensor.shape, region) * tensor.dtype.itemsize
            # What overflows is counted by name, and told by whoever approves the outcome.
            with np.errstate(over="ignore", invalid="ignore"):
                for values in tensor.pieces(region, statistics):
                    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                    _write_content(self._descriptor, payloads, end, data)
                    end += len(data)
            _start_writeback(self._descriptor, payloads, begin, end)
            with self._lock:
                self._measured.setdefault(name, []).append((number, statistics))
            return end - begin

        return compute

    def _copy_task(self, pieces: list[Copy]) -> Callable[[], int]:
        def copy() -> int:
            for piece in pieces:
                copy_range(piece, self._descriptor)
            return sum(piece.length for piece in pieces)

        return copy


def _places(payloads: list[Payload], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Where a file keeps the bytes `start` to `stop` of a tensor's content: (file offset, first byte, end)."""
    for payload in payloads:
        low, high = max(start, payload.start), min(stop, payload.stop)
        if low < high:
            yield payload.offset + low - payload.start, low, high


def _write_content(descriptor: int, payloads: list[Payload], start: int, data: memoryview) -> None:
    """Write bytes of a tensor's content, from byte `start` of it on, to where the file keeps them."""
    for offset, low, high in _places(payloads, start, start + len(data)):
        write_at(descriptor, data[low - start : high - start], offset)


def _start_writeback(descriptor: int, payloads: list[Payload], start: int, stop: int) -> None:
    """Let the disk begin with bytes of a tensor's content that were written."""
    for offset, low, high in _places(payloads, start, stop):
        if high - low >= WRITEBACK_BYTES:
            start_writeback(descriptor, offset, high - low)


def _flat_start(shape: tuple[int, ...], region: Region) -> int:
    flat = 0
    for size, (start, _) in zip(shape, region, strict=True):
        flat = flat * size + start
    return flat


def _append_crc(descriptor: int, size: int) -> int:
    crc, done = 0, 0
    while done < size and (data := os.pread(descriptor, min(_CRC_CHUNK, size - done), done)):
        crc = zlib.crc32(data, crc)
        done += len(data)
    trailer = crc_trailer(crc)
    write_at(descriptor, memoryview(trailer), size)
    return len(trailer)


def _statistics_file(workspace: Workspace, name: str) -> Path:
    return workspace.folder / (name.replace("/", "%2F") + ".statistics.json")


def _save_statistics(workspace: Workspace, name: str, statistics: Mapping[str, Statistics]) -> None:
    text = json.dumps({tensor: asdict(measured) for tensor, measured in statistics.items()})
    _statistics_file(workspace, name).write_text(text)


def _load_statistics(workspace: Workspace, name: str) -> dict[str, Statistics] | None:
    """What was measured when a file was written; None where a crash of the machine lost it."""
    try:
        loaded = json.loads(_statistics_file(workspace, name).read_text())
        return {tensor: Statistics(**measured) for tensor, measured in loaded.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
