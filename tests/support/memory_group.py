"""Processes in a memory cgroup, whose limit counts all of their pages: their own, mapped files and the page cache.

Of both versions of cgroups. Whoever may make no group is told why, as a reason to skip.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from commands import environment

__all__ = ["Ended", "MemoryGroup", "NoGroupError", "memory_group"]

# The process joins the group before it becomes the command. Its peak is asked of the kernel by a small process in
# between, as a process has the peak of the one that it was forked from; that of the group is mostly page cache.
_LAUNCHER = """
import json, resource, subprocess, sys
open(sys.argv[1], "w").write("0")
ended = subprocess.run(sys.argv[3:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
open(sys.argv[2], "w").write(json.dumps([ended.returncode, peak]))
"""


class NoGroupError(Exception):
    """This machine, or this user, has no memory cgroups to make; it says why."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and the most that it had resident at once."""

    returncode: int
    stdout: str
    stderr: str
    resident_bytes: int
    seconds: float


@dataclass(frozen=True)
class MemoryGroup:
    """A group with a limit."""

    folder: Path
    peak_name: str

    def run(self, command: Sequence[str | Path], *, cwd: Path | None = None) -> Ended:
        """Run a command in the group to its end."""
        told = Path(os.environ.get("TMPDIR", "/tmp")) / f"memory-group-{secrets.token_hex(8)}.json"
        launcher = [sys.executable, "-c", _LAUNCHER, self.folder / "cgroup.procs", told, *command]
        started = time.monotonic()
        try:
            done = subprocess.run(
                list(map(str, launcher)),
                cwd=cwd,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=1200,
                check=False,
            )
            seconds = time.monotonic() - started
            if done.returncode:  # the kernel may take the small process too
                return Ended(done.returncode, done.stdout, done.stderr, 0, seconds)
            code, peak = json.loads(told.read_text())
            return Ended(code, done.stdout, done.stderr, peak, seconds)
        finally:
            told.unlink(missing_ok=True)

    def peak_bytes(self) -> int:
        """The most that was charged to the group, page cache included; 0 where the kernel does not tell."""
        try:
            return int((self.folder / self.peak_name).read_text())
        except FileNotFoundError:  # memory.peak came with Linux 5.19
            return 0


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A group of the processes that are run in it, which have so much memory together and no swap.

    Raises:
        NoGroupError: None can be made.
    """
    problems = []
    for parent, limit_name, swap, peak_name in _places():
        folder = parent / f"pet-surgery-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            continue
        try:
            try:
                (folder / limit_name).write_text(str(limit_bytes))
            except OSError as error:  # of a group without the memory controller the file is not there
                problems.append(f"{folder / limit_name}: {error.strerror}")
                continue
            with suppress(OSError):  # a kernel that does not count swap
                (folder / swap[0]).write_text(swap[1].format(limit_bytes))
            yield MemoryGroup(folder, peak_name)
            return
        finally:
            for _ in range(50):  # the kernel may take a moment to let go of the last process
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
    raise NoGroupError("no memory cgroup can be made: " + "; ".join(problems or ["none is mounted"]))


def _places() -> Iterator[tuple[Path, str, tuple[str, str], str]]:
    """Where a group may be made, and what its files are called."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, point, kind, options, *_ in mounts:
        root = Path(point)
        if kind == "cgroup" and "memory" in options.split(","):
            for path in (path for _, controllers, path in own if "memory" in controllers.split(",")):
                names = "memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", "{}"), "memory.max_usage_in_bytes"
                yield root / path.lstrip("/"), *names
        if kind == "cgroup2":
            for path in (path for number, _, path in own if number == "0"):
                names = "memory.max", ("memory.swap.max", "0"), "memory.peak"
                here = root / path.lstrip("/")
                yield here, *names
                if here != root:  # a group with processes hands no controller to groups below it
                    yield here.parent, *names
