"""Fill files on a Ray cluster: a task a file, given again to another worker where one is lost.

The only module that imports Ray, and only when it is asked for.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.tensors.sources import add_reads
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.digests import Digests
from ckpt_tools.writing.executors import Written, keep_file
from ckpt_tools.writing.interrupts import HeldInterrupts
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile
from ckpt_tools.writing.ray_tasks import Attempt, Crew, Lost, Tally, first_line
from ckpt_tools.writing.remote import not_shared
from surgery.errors import MissingExtraError, Problem, ResourceError, UsageError

__all__ = ["RayExecutor", "connect_ray"]

# A file is given to so many workers before its losing them is no accident.
_ATTEMPTS = 4

_KNOCK_SECONDS = 20.0


class RayExecutor:
    """A connection to a cluster.

    Args:
        ray: The package.
        is_own: Whether the connection was made for this, and ends with it.
    """

    def __init__(self, ray: Any, *, is_own: bool) -> None:
        self._ray = ray
        self._is_own = is_own

    def write(
        self,
        files: Sequence[OutputFile],
        workspace: Workspace,
        budget: Budget,
        progress: Progress,
        digests: Digests,
        held: HeldInterrupts,
    ) -> list[Written]:
        """Complete files in a workspace, as an `Executor` does.

        Raises:
            ResourceError: A file lost too many workers; a node does not see the files, or has another installation; the
                cluster has no CPUs, or ended.
        """
        try:
            return self._write(files, workspace, budget, progress, digests, held)
        except self._ray.exceptions.RayTaskError:
            raise  # of a bug, with its traceback
        except self._ray.exceptions.RayError as error:
            raise ResourceError(Problem("the Ray cluster", first_line(error), remedy="Ask `ray status`")) from error

    def close(self) -> None:
        """Leave the cluster; one that was started for this ends."""
        if self._is_own:
            self._ray.shutdown()

    def _write(
        self,
        files: Sequence[OutputFile],
        workspace: Workspace,
        budget: Budget,
        progress: Progress,
        digests: Digests,
        held: HeldInterrupts,
    ) -> list[Written]:
        tally = None if progress is SILENT else Tally(self._ray, progress)
        crew = Crew(self._ray, workspace, budget, tally, owns_processes=self._is_own, with_digests=digests.wanted)
        waiting = deque(Attempt(file, 1, workspace.new_part()) for file in files)
        written: list[Written] = []
        try:
            while waiting or crew.running:
                held.raise_pending()
                while waiting and crew.has_room():
                    crew.give(waiting.popleft())
                for attempt, answer in crew.answers():
                    if isinstance(answer, Written):
                        self._take_over(workspace, attempt, answer)
                        add_reads(answer.read)
                        digests.add_complete(answer.digests)
                        written.append(answer)
                        if tally is not None:
                            tally.complete(answer.name, answer.size)
                    elif isinstance(answer, Lost):
                        waiting.appendleft(_next_attempt(attempt, answer, workspace))
                    else:
                        raise answer
                if tally is not None:
                    tally.show()
        finally:
            crew.dismiss()
            if tally is not None:
                tally.close()
        return written

    def _take_over(self, workspace: Workspace, attempt: Attempt, written: Written) -> None:
        try:
            keep_file(workspace, attempt.part, written)
        except FileNotFoundError as error:
            raise not_shared(attempt.part, "this machine, though a Ray node wrote it") from error


def connect_ray(address: str | None) -> RayExecutor:
    """Use the cluster that this process is connected to, or else connect to one.

    Args:
        address: `ray://HOST:PORT`; None leaves it to Ray, which looks at `RAY_ADDRESS`, then for a cluster on this
            machine, and starts one if there is none.

    Raises:
        UsageError: This process is connected already, and an address is given.
        MissingExtraError: Ray, or its client, is not installed.
        ResourceError: No cluster answers.
    """
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.exceptions")
        if ray.is_initialized():
            if address is not None:
                raise UsageError(
                    Problem(f"--executor {address}", "a connection to Ray that is there already", "none", "Use 'ray'")
                )
            return RayExecutor(ray, is_own=False)
        _knock(address or os.environ.get("RAY_ADDRESS", ""))
        with _kept_handler():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ImportError as error:
        found = f"Ray is not complete: {error}"
        raise MissingExtraError(Problem("--executor ray", found, remedy="pip install 'pet-surgery[ray]'")) from error
    except (OSError, RuntimeError, ValueError) as error:
        where = "--executor ray" if address is None else f"--executor {address}"
        if address is None and "RAY_ADDRESS" in os.environ:
            where += f" with RAY_ADDRESS={os.environ['RAY_ADDRESS']}"
        raise ResourceError(
            Problem(where, first_line(error), "a Ray cluster that answers", "Ask `ray status`, or use --executor local")
        ) from error
    return RayExecutor(ray, is_own=True)


def _knock(address: str) -> None:
    """Connect to where a cluster should be: Ray itself tries for minutes where nobody answers.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT`; anything else (`auto`, `local`) is Ray's affair.

    Raises:
        OSError: Nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


@contextmanager
def _kept_handler() -> Iterator[None]:
    """Connecting puts a handler of Ray's behind SIGTERM; this puts the one before it back."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        if is_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _next_attempt(attempt: Attempt, lost: Lost, workspace: Workspace) -> Attempt:
    """The same file once more, somewhere else.

    Raises:
        ResourceError: It was given away often enough.
    """
    with suppress(OSError):
        attempt.part.unlink()
    if attempt.number >= _ATTEMPTS:
        raise ResourceError(
            Problem(
                attempt.file.name,
                f"{attempt.number} Ray workers were lost while they wrote it, the last: {lost.reason}",
                "a worker that lives",
                "See that node's logs. Where memory ran out, lower --threads or --max-memory",
            )
        )
    return replace(attempt, number=attempt.number + 1, part=workspace.new_part())
