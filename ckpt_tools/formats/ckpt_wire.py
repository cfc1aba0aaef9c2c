"""The protobuf wire format of a file, walked field by field with positional reads of a small window.

protobuf's own parsers need the whole message in memory and stop at 2 GiB; a walk needs neither. It never follows a
length that leaves the enclosing field, so whatever a file announces costs nothing before its bytes are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckpt_tools.tensors.sources import Source, read_exactly
from surgery.errors import CorruptInputError, Problem

__all__ = ["LENGTH", "VARINT", "WireField", "WireReader"]

VARINT, _FIXED64, LENGTH, _START_GROUP, _END_GROUP, _FIXED32 = range(6)

# The headers around a small tensor are about 100 bytes: one window covers many small tensors, and costs a large one
# no more than a single read.
_WINDOW_BYTES = 16 * 1024
_MAX_VARINT_BYTES = 10
_MAX_FIELD_NUMBER = 2**29 - 1

_CUT = "The file is cut short or damaged: copy it again from where it was saved"


@dataclass(frozen=True, slots=True)
class WireField:
    """A field of a message.

    Attributes:
        number: What the message's definition calls it.
        wire_type: How it is encoded: `VARINT`, `LENGTH` or one of the fixed sizes.
        offset: Where in the file its key begins.
        start: Where its payload begins.
        stop: Where it ends.
        value: The number of a `VARINT`, unsigned; 0 for other types.
    """

    number: int
    wire_type: int
    offset: int
    start: int
    stop: int
    value: int = 0


class WireReader:
    """Reads fields at any offset of a file; holds one window of it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._window = bytearray()
        self._begin = 0

    def fields(self, start: int, stop: int) -> Iterator[WireField]:
        """The fields of the message in bytes `start` to `stop`, in their order."""
        while start < stop:
            field = self.field(start, stop)
            yield field
            start = field.stop

    def field(self, offset: int, limit: int) -> WireField:
        """The field whose key begins at `offset`, within a message that ends at `limit`.

        Raises:
            CorruptInputError: It is no field, or it leaves the message.
        """
        key, start = self.varint(offset, limit)
        number, wire_type = key >> 3, key & 7
        if not 1 <= number <= _MAX_FIELD_NUMBER:
            raise self.corrupt(offset, f"field number {number}", "one from 1 to 536,870,911")
        if wire_type == LENGTH:
            length, start = self.varint(start, limit)
            stop = start + length
        elif wire_type == VARINT:
            value, stop = self.varint(start, limit)
            return WireField(number, wire_type, offset, start, stop, value)
        elif wire_type in (_FIXED32, _FIXED64):
            stop = start + (4 if wire_type == _FIXED32 else 8)
        elif wire_type in (_START_GROUP, _END_GROUP):
            # protobuf deprecated groups before MindSpore existed; nesting them is a known way to exhaust a parser.
            raise self.corrupt(offset, f"a group in field {number}", "a varint, a length or a fixed size")
        else:
            raise self.corrupt(offset, f"wire type {wire_type} in field {number}", "one from 0 to 5")
        if stop > limit:
            raise self.corrupt(
                offset, f"field {number} announcing {stop - start:,} bytes", f"at most {limit - start:,} bytes"
            )
        return WireField(number, wire_type, offset, start, stop)

    def varint(self, offset: int, limit: int) -> tuple[int, int]:
        """The unsigned number at `offset`, and where it ends.

        Raises:
            CorruptInputError: It leaves the message that ends at `limit`, or it does not fit 64 bits.
        """
        index = offset - self._begin
        if offset < limit and 0 <= index < len(self._window) and self._window[index] < 0x80:
            return self._window[index], offset + 1  # nearly all of a header's numbers
        value = 0
        for index in range(min(_MAX_VARINT_BYTES, limit - offset)):
            byte = self.byte(offset + index)
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if value >= 2**64:
                    break
                return value, offset + index + 1
        else:
            if limit - offset < _MAX_VARINT_BYTES:
                raise self.corrupt(offset, f"the end of the data at byte {limit:,} inside a number", "the whole number")
        raise self.corrupt(offset, "a number (varint) of more than 64 bits", "at most 10 bytes and 64 bits")

    def byte(self, offset: int) -> int:
        """One byte; the window moves there."""
        index = offset - self._begin
        if not 0 <= index < len(self._window):
            self._window = read_exactly(self.source, offset, min(_WINDOW_BYTES, self.source.size - offset))
            self._begin = offset
            index = 0
        return self._window[index]

    def content(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`: for names and other small things."""
        if self._begin <= start and stop <= self._begin + len(self._window):
            return bytes(self._window[start - self._begin : stop - self._begin])
        return bytes(read_exactly(self.source, start, stop - start))

    def corrupt(self, offset: int, found: str, expected: str) -> CorruptInputError:
        """An error at a byte of this file."""
        return CorruptInputError(Problem(f"{self.source.path}, byte {offset:,}", found, expected, _CUT))
