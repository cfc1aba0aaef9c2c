"""Locks of folders: the kernel's, which end with the process that holds them, whatever ends it."""

from __future__ import annotations

import errno
import fcntl
import os
from enum import Enum
from pathlib import Path

__all__ = ["Lock", "is_still", "try_lock"]


class Lock(Enum):
    """What trying to lock a folder gives."""

    HELD = "this run has it"
    BUSY = "another run has it"
    NONE = "the file system has no locks"


def try_lock(descriptor: int, kind: int) -> Lock:
    """Lock an open folder without waiting.

    Args:
        descriptor: The folder's.
        kind: `fcntl.LOCK_EX` for one alone, `fcntl.LOCK_SH` for several.

    Raises:
        OSError: The call failed.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.BUSY
    except OSError as error:
        # File systems without locks (some Lustre and NFS mounts) still get all of the other guarantees.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return Lock.NONE
    return Lock.HELD


def is_still(path: Path, descriptor: int) -> bool:
    """Whether what is open still lies at the path, where it may have been removed before it was locked."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
