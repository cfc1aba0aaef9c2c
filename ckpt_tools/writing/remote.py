"""What of a run travels to another process, which may be on another machine: an order for one file, and its answer.

The plan of the file travels, pickled; tensors do not. Inputs and output lie on a file system that both see.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_tools.tensors.sources import Source, check_unchanged, close_sources, watch_reads
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.digests import Digests
from ckpt_tools.writing.executors import Written
from ckpt_tools.writing.file_job import FileJob
from ckpt_tools.writing.interrupts import HeldInterrupts
from ckpt_tools.writing.linux import keep_freed_memory
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile, Plan
from ckpt_tools.writing.threads import fill_files
from surgery.errors import PetSurgeryError, Problem, ResourceError

__all__ = ["Answer", "Order", "fill_order", "not_shared"]

Answer = Written | PetSurgeryError | OSError | MemoryError
"""A file that was written, or what was in the way: as a value, since it is to be raised as it is on the other side."""

_REPORT_SECONDS = 0.25

# A network file system may need a moment to show another machine's new folder.
_PATIENCE_SECONDS = (0.0, 0.1, 0.4, 1.5)


@dataclass(frozen=True, slots=True)
class Order:
    """A file to be written elsewhere.

    Attributes:
        workspace: Where the output grows.
        part: Where this file is written to; nothing else is.
        budget: Threads and memory.
        file: The plan of the file.
        owns_process: Whether the process that fills it has nothing else to do.
        watched: Paths of inputs of which the answer tells what was read.
        with_digests: Whether the answer tells the digests of tensors.
    """

    workspace: Workspace
    part: Path
    budget: Budget
    file: OutputFile
    owns_process: bool = False
    watched: frozenset[str] = frozenset()
    with_digests: bool = False

    def to_bytes(self) -> bytes:
        """The order as it travels."""
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = copyreg.dispatch_table.copy()
        pickler.dispatch_table[Source] = _travel
        pickler.dump(self)
        return buffer.getvalue()


def fill_order(order: bytes, report: Callable[[int], None]) -> Answer:
    """Write a file where the order says, synced; to be called by another process than the order's own.

    Args:
        order: An `Order`, as it travels.
        report: Told now and then how many bytes are done so far; may be called from any thread.
    """
    try:
        return _fill(pickle.loads(order), report)
    except (PetSurgeryError, OSError, MemoryError) as error:
        return error
    finally:
        close_sources()


def not_shared(path: str | os.PathLike[str], seen_from: str) -> ResourceError:
    """The error for a path that one machine sees and another does not."""
    return ResourceError(
        Problem(
            str(path),
            f"nothing is there, seen from {seen_from}",
            "a file system that this machine and all Ray nodes share, mounted at the same place",
            "Put inputs and output onto one, or use --executor local",
        )
    )


def _fill(order: Order, report: Callable[[int], None]) -> Written:
    for seconds in _PATIENCE_SECONDS:
        time.sleep(seconds)
        if order.workspace.is_visible():
            break
    else:
        raise not_shared(order.workspace.folder, socket.gethostname())
    if order.owns_process:
        keep_freed_memory()
    digests = Digests(wanted=order.with_digests)
    job = FileJob(order.file, order.part, order.budget, _Reports(report), digests, keep=lambda job: None)
    sources = Plan(order.workspace.output, True, (order.file,)).sources()
    with watch_reads(source for source in sources if source.path in order.watched) as watched:
        fill_files([job], order.budget, HeldInterrupts())
    for source in sources:
        check_unchanged(source)
    read = {source.path: pieces.pieces() for source, pieces in watched.items()}
    return Written(order.file.name, job.size, job.measured(), read, digests.complete())


def _travel(source: Source) -> tuple[Callable[..., Source], tuple[str, int, int, int, int]]:
    return _arrive, (source.path, source.size, source.mtime_ns, source.inode, source.device)


def _arrive(*identity: Any) -> Source:
    """An input as this machine sees it: the same file, on a device whose number is each machine's own affair.

    Raises:
        ResourceError: It is not there.
        InputChangedError: It is another file.
    """
    source = Source(*identity)
    try:
        here = replace(source, device=Path(source.path).stat().st_dev)
    except FileNotFoundError as error:
        raise not_shared(source.path, socket.gethostname()) from error
    check_unchanged(here)
    return here


class _Reports:
    """Progress that is sent on now and then, as the sum."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._lock = threading.Lock()
        self._report = report
        self._done = 0
        self._next = time.monotonic() + _REPORT_SECONDS

    def start(self, total_bytes: int, what: str) -> None:
        """Nothing: whoever gave the order knows."""

    def advance(self, done_bytes: int) -> None:
        """So many more bytes are done."""
        with self._lock:
            self._done += done_bytes
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + _REPORT_SECONDS
            self._report(self._done)

    def finish(self) -> None:
        """Nothing: the answer says so."""
