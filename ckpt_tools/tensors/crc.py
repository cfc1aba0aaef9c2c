"""The CRC-32 of a file, put together of the stretches that are read of it anyway, in whatever order.

CRCs of two stretches that follow each other combine into that of both (Adler's crc32_combine in zlib).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from zlib_ng.zlib_ng import crc32, crc32_combine

__all__ = ["CrcPieces", "Piece", "crc32"]

Piece = tuple[int, int, int]
"""A stretch that was read: where it begins, bytes, and their CRC-32."""

# Reads that do not follow each other, as of columns, are no reading of the whole.
_MAX_PIECES = 100_000


class CrcPieces:
    """What was read of one file; those that follow each other become one. Safe on threads."""

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._lock = threading.Lock()
        self._pieces: dict[int, tuple[int, int]] = {}  # start to (stop, crc)
        self._starts: dict[int, int] = {}  # stop to start
        self._gave_up = False
        for start, length, crc in pieces:
            self._add(start, start + length, crc)

    def add(self, start: int, data: memoryview) -> None:
        """Take note of bytes that were read from `start` on."""
        if data and not self._gave_up:
            self._add(start, start + len(data), crc32(data))

    def add_pieces(self, pieces: Iterable[Piece]) -> None:
        """Take note of what was read elsewhere."""
        for start, length, crc in pieces:
            self._add(start, start + length, crc)

    def pieces(self) -> list[Piece]:
        """What was read, in order."""
        with self._lock:
            return [(start, stop - start, crc) for start, (stop, crc) in sorted(self._pieces.items())]

    def whole(self, length: int, read: Callable[[int, int], bytes | bytearray], max_gap_bytes: int) -> int | None:
        """The CRC-32 of the first bytes of the file; None where not all of them were read.

        Args:
            length: How many bytes.
            read: Reads what is missing: called with start and length.
            max_gap_bytes: How much may be missing: headers between tensors, and what is read of another file.
        """
        if self._gave_up:
            return None
        crc = position = missing = 0
        for start, size, piece_crc in [*self.pieces(), (length, 0, 0)]:
            if start < position:  # read twice
                continue
            missing += start - position
            if missing > max_gap_bytes:
                return None
            if start > position:
                crc = crc32(read(position, start - position), crc)
            crc = crc32_combine(crc, piece_crc, size)
            position = start + size
        return crc if position == length else None

    def _add(self, start: int, stop: int, crc: int) -> None:
        with self._lock:
            known = self._pieces.get(start)
            if known is not None and known[0] >= stop:
                return
            before = self._starts.pop(start, start)
            if before != start and self._pieces.get(before, (0, 0))[0] == start:
                crc = crc32_combine(self._pieces.pop(before)[1], crc, stop - start)
                start = before
            behind = self._pieces.pop(stop, None)
            if behind is not None:
                crc = crc32_combine(crc, behind[1], behind[0] - stop)
                stop = behind[0]
            self._pieces[start] = (stop, crc)
            self._starts[stop] = start
            if len(self._pieces) > _MAX_PIECES:
                self._gave_up = True
                self._pieces.clear()
                self._starts.clear()
