"""Who fills the files of a plan: threads of this process, or a Ray cluster.

The run itself (its lock, what it resumes, companions, publishing) is `write`'s, whoever fills the files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ckpt_tools.progress import Progress
from ckpt_tools.tensors.crc import Piece
from ckpt_tools.tensors.sources import MAX_OPEN_SOURCES
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.digests import Digests
from ckpt_tools.writing.file_job import FileJob, Measured
from ckpt_tools.writing.interrupts import HeldInterrupts
from ckpt_tools.writing.kept import Kept, keep_facts
from ckpt_tools.writing.linux import open_files_limit
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile
from ckpt_tools.writing.threads import fill_files
from surgery.errors import MissingExtraError, Problem, UsageError

__all__ = ["Executor", "Written", "check_executor", "connect_executor", "keep_file"]

_RAY_SCHEME = "ray://"

# Of the files that a process may have open, those that are not for outputs: inputs, and what else the process has open.
_OTHER_FILES = MAX_OPEN_SOURCES + 128
_FEWEST_FILES = 64

# What is known of a tensor of an open file takes some 400 bytes.
_OPEN_TENSORS = 2**18


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written.

    Attributes:
        name: Its name in the plan.
        size: Bytes.
        measured: What was measured of its computed tensors.
        read: What another process read for it of watched inputs, by their paths.
        digests: The digests that were known, when it was complete, of tensors that it holds.
    """

    name: str
    size: int
    measured: Measured
    read: Mapping[str, Sequence[Piece]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    """What fills files."""

    def write(
        self,
        files: Sequence[OutputFile],
        workspace: Workspace,
        budget: Budget,
        progress: Progress,
        digests: Digests,
        held: HeldInterrupts,
    ) -> list[Written]:
        """Complete files in a workspace; when this ends, well or not, nothing writes there any more.

        Raises:
            PetSurgeryError: Inputs or machines are at fault.
            OSError: Writing failed.
            KeyboardInterrupt: An interruption was held back.
        """

    def close(self) -> None:
        """Let go of what was connected or started for it."""


def check_executor(executor: str) -> None:
    """Make sure that there is such an executor, before long work begins.

    Args:
        executor: `local`, `ray` or `ray://HOST:PORT`.

    Raises:
        UsageError: It is none of these.
        MissingExtraError: Ray is not installed.
    """
    if executor == "local":
        return
    is_address = executor.startswith(_RAY_SCHEME) and executor != _RAY_SCHEME
    if executor != "ray" and not is_address:
        raise UsageError(Problem("--executor", executor or "nothing", "local, ray or ray://HOST:PORT"))
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError(
            Problem(f"--executor {executor}", "Ray is not installed", remedy="pip install 'pet-surgery[ray]'")
        )


def connect_executor(executor: str) -> Executor:
    """The executor of that name, ready to work; whoever asked for it closes it.

    Args:
        executor: `local`; `ray` for the cluster that this process is connected to, else that of `RAY_ADDRESS`, else
            the one that runs on this machine, else one that is started here; or `ray://HOST:PORT`.

    Raises:
        UsageError: There is no such executor, or this process is connected to another cluster.
        MissingExtraError: Ray is not installed.
        ResourceError: No cluster answers at that address.
    """
    check_executor(executor)
    if executor == "local":
        return _Threads()
    from ckpt_tools.writing.ray_executor import connect_ray

    return connect_ray(executor if executor.startswith(_RAY_SCHEME) else None)


def keep_file(workspace: Workspace, part: Path, written: Written) -> None:
    """Make a part a complete file of the workspace, with what is known of it for a run that takes it over."""
    known = Kept(written.size, part.stat().st_mtime_ns, written.measured, written.digests)
    keep_facts(workspace, written.name, known)
    workspace.complete(part, written.name)


def _batches(files: Sequence[OutputFile], most: int) -> Iterator[list[OutputFile]]:
    """Files that are open at the same time, so that a tensor that they share is read once: all of them, if possible."""
    batch: list[OutputFile] = []
    tensors = 0
    for file in files:
        if batch and (len(batch) == most or tensors + len(file.tensors) > _OPEN_TENSORS):
            yield batch
            batch, tensors = [], 0
        batch.append(file)
        tensors += len(file.tensors)
    if batch:
        yield batch


class _Threads:
    """Threads of this process."""

    def write(
        self,
        files: Sequence[OutputFile],
        workspace: Workspace,
        budget: Budget,
        progress: Progress,
        digests: Digests,
        held: HeldInterrupts,
    ) -> list[Written]:
        written: list[Written] = []

        def keep(job: FileJob) -> None:
            result = Written(job.entry.name, job.size, job.measured(), digests=digests.known(job.entry))
            keep_file(workspace, job.part, result)
            written.append(result)

        for batch in _batches(files, max(open_files_limit() - _OTHER_FILES, _FEWEST_FILES)):
            jobs = [FileJob(file, workspace.new_part(), budget, progress, digests, keep) for file in batch]
            fill_files(jobs, budget, held)
        return written

    def close(self) -> None:
        pass
