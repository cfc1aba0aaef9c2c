"""Linux calls that Python does not offer: fallocate without emulation, early writeback, renames with flags, mallopt."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "allow_open_files",
    "keep_freed_memory",
    "open_files_limit",
    "preallocate",
    "rename_exchange",
    "rename_new",
    "start_writeback",
]

_AT_FDCWD = -100
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**25  # the most that mallopt takes for the second
_MOST_FILES = 2**16  # more than ranks of any cluster
_SYNC_FILE_RANGE_WRITE = 2
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def keep_freed_memory() -> None:
    """Let malloc keep the arrays of a tile for the next one, instead of giving them back to the kernel.

    Getting them again costs a page fault for every 4 KiB, which is more than the arithmetic on them. It holds for the
    whole process, so it is for a command to call, not for a library.
    """
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        _libc().mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def open_files_limit() -> int:
    """How many files this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)


def allow_open_files() -> None:
    """Let this process have as many files open as the system allows it to: some hundred thousand, rather than 1,024.

    It holds for the whole process, and a program that calls `select` cannot use the higher numbers, so it is for a
    command to call, not for a library.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def preallocate(descriptor: int, size: int) -> None:
    """Give a file its size, and its room on the disk where the file system can promise it.

    `os.posix_fallocate` is not used: where the file system has no such call, it writes to every block instead.

    Raises:
        OSError: There is no room (ENOSPC, EDQUOT).
    """
    if size > 0 and hasattr(_libc(), "fallocate"):
        call = _libc().fallocate
        if call(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED and code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    os.ftruncate(descriptor, size)


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Let the disk begin with some bytes of a file, so that little is left to do when the file is synced.

    A hint: where it is refused, fsync does all of the work.
    """
    if hasattr(_libc(), "sync_file_range"):
        call = _libc().sync_file_range
        call(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def rename_new(old: Path, new: Path) -> bool:
    """Rename without replacing anything. False where the system or the file system cannot do that.

    Raises:
        FileExistsError: `new` exists.
        OSError: The rename failed.
    """
    return _renameat2(old, new, _RENAME_NOREPLACE)


def rename_exchange(old: Path, new: Path) -> bool:
    """Exchange two paths in one step. False where the system or the file system cannot do that.

    Raises:
        OSError: The exchange failed.
    """
    return _renameat2(old, new, _RENAME_EXCHANGE)


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    if not hasattr(_libc(), "renameat2"):
        return False
    if _libc().renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(new))
