"""A folder for what is large and needed for a moment; one that a killed run left is removed by the next."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckpt_tools.sizes import format_size
from surgery.errors import Problem, ResourceError

__all__ = ["check_scratch", "scratch_failed", "scratch_folder", "sweep_scratch"]

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


def check_scratch(folder: Path, needed_bytes: int) -> None:
    """Make sure that what is needed for a moment fits onto the disk of its folder.

    Raises:
        ResourceError: It does not.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        found, expected = f"{format_size(free)} free", f"room for {format_size(needed_bytes)} of temporary files"
        raise ResourceError(Problem(str(folder.parent), found, expected, _remedy(folder)))


def scratch_failed(folder: Path, error: OSError) -> ResourceError:
    """What a failed call means, by which a temporary file was to be written."""
    found = f"writing a temporary file failed: {(error.strerror or str(error)).lower()}"
    return ResourceError(Problem(str(folder.parent), found, remedy=_remedy(folder)))


def _remedy(folder: Path) -> str:
    is_usual = folder.parent == Path(tempfile.gettempdir())
    return f"Free some room{', or set TMPDIR to a folder on another disk' if is_usual else ' there'}"


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
