"""What other runs left hidden beside an output, seen by who does not write there: swept, counted or heeded."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ckpt_tools.writing.atomic import Workspace, refuse_existing
from ckpt_tools.writing.locks import Lock, is_still, try_lock
from surgery.errors import InputChangedError, Problem

__all__ = ["check_settled", "left_bytes", "refuse_taken", "sweep_published"]


def refuse_taken(output: Path) -> None:
    """Make sure that nothing lies at the output's path; else what `sweep_published` removes is removed.

    Raises:
        OutputExistsError: Something does.
    """
    sweep_published(output)
    refuse_existing(output)


def sweep_published(*outputs: Path) -> None:
    """Remove what runs left hidden that were killed when they had published their outputs."""
    for output in outputs:
        if os.path.lexists(output):
            with suppress(OSError):
                _sweep(Workspace.of(output))


def left_bytes(output: Path, names: Iterable[str]) -> int:
    """Bytes on the disk that runs before this one left hidden, and that it either takes over or removes.

    Args:
        output: The path of the output.
        names: The files that are to be written to it.
    """
    workspace = Workspace.of(output)
    try:
        descriptor = os.open(workspace.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        total = 0
        for name in names:
            with suppress(OSError):
                total += (workspace.content / name).stat().st_size
        if try_lock(descriptor, fcntl.LOCK_EX) is not Lock.BUSY:  # else others are writing these
            for path in workspace.all_parts.rglob("*"):
                with suppress(OSError):
                    total += path.lstat().st_blocks * 512
        return total
    finally:
        os.close(descriptor)


def check_settled(output: Path, other: Path) -> None:
    """Make sure that a file and a small one beside it are of one run: they get their places one after the other.

    Raises:
        InputChangedError: A run is at it, or was killed at it: one of the two is new by now, and the other may be old.
    """
    workspace = Workspace.of(output)
    if workspace.beside.is_dir() and workspace.has_content():
        found = f"maybe not that of {output}: a run is replacing both, or was killed at it ({workspace.folder})"
        raise InputChangedError(
            Problem(str(other), found, "both of one run", "Wait for that run; if none is at work, run it again")
        )


def _sweep(workspace: Workspace) -> None:
    """Remove a hidden folder that no run holds, and in which nothing waits to be taken over."""
    descriptor = os.open(workspace.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        is_free = try_lock(descriptor, fcntl.LOCK_EX) is Lock.HELD and is_still(workspace.folder, descriptor)
        if is_free and not workspace.has_content():
            workspace.remove()
    finally:
        os.close(descriptor)
