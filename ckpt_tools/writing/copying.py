"""Untouched bytes from inputs to an output: never decoded, copied by the kernel, in runs as long as they can be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckpt_tools.formats.model import Payload
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.sources import Source, is_watched, opened, read_exactly
from ckpt_tools.writing.linux import start_writeback

__all__ = ["WRITEBACK_BYTES", "Copy", "coalesce", "copies_of", "copy_range", "group", "write_at"]

_COPY_CHUNK = 16 * 2**20
_PLAIN_CHUNK = 2**20

WRITEBACK_BYTES = 2**20
"""Less is left for fsync: a call for every small tensor would cost more than it gains."""

# What copy_file_range answers where it cannot do the job and plain reads and writes can.
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Copy:
    """A stretch of an input that goes into the output as it is.

    Attributes:
        source: The input.
        source_offset: Where in the input it begins.
        offset: Where in the output it begins.
        length: Bytes.
    """

    source: Source
    source_offset: int
    offset: int
    length: int


def copies_of(tensor: LazyTensor, payloads: list[Payload]) -> Iterator[Copy]:
    """The stretches of a stored tensor's files, cut where its place in the output is cut."""
    for payload in payloads:
        begin = 0
        for run in tensor.byte_runs() or ():
            end = begin + run.length
            low, high = max(begin, payload.start), min(end, payload.stop)
            if low < high:
                yield Copy(run.source, run.offset + low - begin, payload.offset + low - payload.start, high - low)
            begin = end


def coalesce(copies: Iterable[Copy]) -> Iterator[Copy]:
    """Make one of copies that follow each other in the input and in the output."""
    last: Copy | None = None
    for copy in copies:
        if (
            last is not None
            and last.source == copy.source
            and last.source_offset + last.length == copy.source_offset
            and last.offset + last.length == copy.offset
        ):
            last = Copy(last.source, last.source_offset, last.offset, last.length + copy.length)
            continue
        if last is not None:
            yield last
        last = copy
    if last is not None:
        yield last


def group(copies: Iterable[Copy]) -> Iterator[list[Copy]]:
    """Groups of about `_COPY_CHUNK` bytes: long copies are cut, short ones gathered."""
    gathered: list[Copy] = []
    size = 0
    for copy in copies:
        done = 0
        while done < copy.length:
            length = min(copy.length - done, _COPY_CHUNK - size)
            gathered.append(Copy(copy.source, copy.source_offset + done, copy.offset + done, length))
            done, size = done + length, size + length
            if size == _COPY_CHUNK:
                yield gathered
                gathered, size = [], 0
    if gathered:
        yield gathered


def copy_range(piece: Copy, target: int) -> None:
    """Copy in the kernel where it can and nobody has to see the bytes, else by reading and writing.

    Raises:
        InputChangedError: The input ended before its time.
        OSError: Writing failed.
    """
    done = 0
    with opened(piece.source) as descriptor:
        while done < piece.length and not is_watched(piece.source):
            try:
                count = os.copy_file_range(
                    descriptor, target, piece.length - done, piece.source_offset + done, piece.offset + done
                )
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                count = 0
            if count == 0:
                break
            done += count
    if done >= WRITEBACK_BYTES:
        start_writeback(target, piece.offset, done)
    # Plain reads and writes: what the kernel could not copy, and the proof that the source ended early.
    while done < piece.length:
        length = min(piece.length - done, _PLAIN_CHUNK)
        data = read_exactly(piece.source, piece.source_offset + done, length)
        write_at(target, memoryview(data), piece.offset + done)
        done += length


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of some bytes, however few the kernel takes at a time."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
