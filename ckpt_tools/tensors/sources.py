"""Input files: their identity, and positional reads through a bounded cache of open handles."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.tensors.crc import CrcPieces, Piece
from surgery.errors import CorruptInputError, InputChangedError, InputMissingError, Problem, ResourceError

__all__ = [
    "MAX_OPEN_SOURCES",
    "Source",
    "add_reads",
    "check_unchanged",
    "close_sources",
    "is_watched",
    "open_source",
    "opened",
    "read_exactly",
    "read_into",
    "watch_reads",
    "watched_paths",
]

MAX_OPEN_SOURCES = 128
"""Inputs that are open at the same time."""

# What the machine is to blame for, and not the path.
_MACHINE = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}


@dataclass(frozen=True, slots=True)
class Source:
    """A regular file as it was when it was opened.

    Attributes:
        path: Where it lies; absolute.
        size: Bytes.
        mtime_ns: Time of its last modification, in nanoseconds.
        inode: Its number on its device.
        device: The device it lies on.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    device: int


def open_source(path: str | os.PathLike[str]) -> Source:
    """Look at a file, follow symbolic links, and remember what it is.

    Raises:
        InputMissingError: There is no such file, or it may not be read.
        ResourceError: The disk failed, or too many files are open.
        CorruptInputError: It is a folder, a pipe, a socket or a device.
    """
    absolute = Path(path).absolute()
    try:
        info = absolute.stat()
        if stat.S_ISREG(info.st_mode):
            with open(absolute, "rb"):
                pass
    except OSError as error:
        found = (error.strerror or str(error)).lower()
        if error.errno in _MACHINE:
            raise ResourceError(Problem(str(path), found, "a readable file")) from error
        raise InputMissingError(Problem(str(path), found, "a readable file", "Check the path")) from error
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe, a socket or a device"
        raise CorruptInputError(Problem(str(path), kind, "a regular file", "Put the file itself in its place"))
    return Source(str(absolute), info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev)


class _Handles:
    """File descriptors by path, the least recently used closed first, none while it is in use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[Source, list[int]] = OrderedDict()  # [descriptor, users]

    @contextmanager
    def use(self, source: Source) -> Iterator[int]:
        with self._lock:
            entry = self._open.get(source)
            if entry is None:
                entry = [self._open_unchanged(source), 0]
                self._open[source] = entry
            entry[1] += 1
            self._open.move_to_end(source)
            self._close_idle()
        try:
            yield entry[0]
        finally:
            with self._lock:
                entry[1] -= 1

    def _open_unchanged(self, source: Source) -> int:
        try:
            # A pipe that took the file's place would block without O_NONBLOCK; to a regular file it means nothing.
            descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _changed(source) from error  # it was there before
        except OSError as error:
            raise ResourceError(Problem(source.path, (error.strerror or str(error)).lower(), "to open it")) from error
        if _identity(os.fstat(descriptor)) != (source.size, source.mtime_ns, source.inode, source.device):
            os.close(descriptor)
            raise _changed(source)
        return descriptor

    def _close_idle(self) -> None:
        if len(self._open) <= MAX_OPEN_SOURCES:
            return
        for source in list(self._open):
            if len(self._open) <= MAX_OPEN_SOURCES:
                return
            if self._open[source][1] == 0:
                os.close(self._open.pop(source)[0])

    def close_all(self) -> None:
        with self._lock:
            for source in [source for source, entry in self._open.items() if entry[1] == 0]:
                os.close(self._open.pop(source)[0])


_HANDLES = _Handles()


def opened(source: Source) -> AbstractContextManager[int]:
    """The file's descriptor, for the length of a `with` block."""
    return _HANDLES.use(source)


def close_sources() -> None:
    """Close the descriptors that are not in use."""
    _HANDLES.close_all()


def read_into(source: Source, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` with the file's bytes from `offset` on.

    Raises:
        InputChangedError: The file ended before the buffer was full.
        ResourceError: Reading failed.
    """
    with _HANDLES.use(source) as descriptor:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise ResourceError(
                    Problem(f"{source.path}, byte {offset + done}", error.strerror or str(error), "to read it")
                ) from error
            if count == 0:
                raise _changed(source)
            done += count
    for pieces in _WATCHED.get(source, ()):
        pieces.add(offset, buffer)


# Several operations of one process may read the same file.
_WATCHED: dict[Source, list[CrcPieces]] = {}
_WATCHED_LOCK = threading.Lock()


@contextmanager
def watch_reads(sources: Iterable[Source]) -> Iterator[Mapping[Source, CrcPieces]]:
    """Take note of the CRC-32 of all that is read of some files within a block, by whatever thread."""
    watched = {source: CrcPieces() for source in sources}
    with _WATCHED_LOCK:
        for source, pieces in watched.items():
            _WATCHED[source] = [*_WATCHED.get(source, ()), pieces]
    try:
        yield watched
    finally:
        with _WATCHED_LOCK:
            for source, pieces in watched.items():
                left = [other for other in _WATCHED[source] if other is not pieces]
                if left:
                    _WATCHED[source] = left
                else:
                    del _WATCHED[source]


def is_watched(source: Source) -> bool:
    """Whether what is read of a file is taken note of, so that the kernel alone must not copy it."""
    return source in _WATCHED


def watched_paths() -> frozenset[str]:
    """The paths of these files."""
    return frozenset(source.path for source in _WATCHED)


def add_reads(reads: Mapping[str, Sequence[Piece]]) -> None:
    """Take note of what another process read, by the paths of the files."""
    for source, notes in [(source, notes) for source, notes in _WATCHED.items() if source.path in reads]:
        for pieces in notes:
            pieces.add_pieces(reads[source.path])


def read_exactly(source: Source, offset: int, length: int) -> bytearray:
    """`length` bytes of the file from `offset` on."""
    data = bytearray(length)
    read_into(source, offset, memoryview(data))
    return data


def check_unchanged(source: Source) -> None:
    """Make sure that the file at the path is the one that was opened, with the same size and time.

    Raises:
        InputChangedError: It is another one, or it was written to.
    """
    try:
        info = Path(source.path).stat()
    except OSError as error:
        raise _changed(source) from error
    if _identity(info) != (source.size, source.mtime_ns, source.inode, source.device):
        raise _changed(source)


def _identity(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev


def _changed(source: Source) -> InputChangedError:
    return InputChangedError(
        Problem(source.path, "it changed while it was being read", "an input that stays as it is", "Run again")
    )
