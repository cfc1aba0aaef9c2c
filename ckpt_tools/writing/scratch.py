"""A folder for what is large and needed for a moment; one that a killed run left is removed by the next."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["scratch_folder", "sweep_scratch"]

_PREFIX = "pet-surgery-"


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """An empty folder, which is gone behind the block.

    Args:
        parent: The folder that it is made in, where other machines have to find it; by default where temporary files
            go (`TMPDIR`).

    Raises:
        OSError: An I/O call failed.
    """
    sweep_scratch(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another run swept it before it was locked
        with suppress(OSError):  # without locks it is not swept either
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if folder.exists():
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep_scratch(parent: Path | None = None) -> None:
    """Remove the folders that no run holds, also where this run will need none.

    Args:
        parent: As of `scratch_folder`.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
