"""The values of a MindSpore `.ckpt`, one after the other: name, dimensions, type, and where the content lies.

    file    = value* [trailer]
    value   = 0A varint(len) { 0A len tag(utf8)   12 len tensor }       field 3 instead of 2: a map parameter
    tensor  = (08 varint(dim))*   12 len type   1A len content
    trailer = "crc_num" + 10-byte big-endian CRC-32 of all bytes before

Packed dimensions, fields in another order and unknown fields are legal protobuf and are read. A field that may stand
once and stands twice is refused: protobuf would take the last one, or join the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ckpt_tools.formats.ckpt_wire import LENGTH, WireField, WireReader
from ckpt_tools.formats.wire_message import expect_type, fields_once, read_numbers, read_text
from surgery.errors import CorruptInputError, PetSurgeryError, Problem, UnknownFormatError

__all__ = ["CRC_MAGIC", "TRAILER_BYTES", "Trailer", "Value", "ValueProblems", "quote_name", "walk_values"]

CRC_MAGIC = b"crc_num"
TRAILER_BYTES = 17

_MAX_PROBLEMS = 20
_MAX_NAME_BYTES = 65_536
_MAX_ALL_NAME_BYTES = 100_000_000
_MAX_TYPE_BYTES = 64
_MAX_AXES = 32  # numpy 1.x; MindSpore stops at 8 for most operators
_MAX_VALUES = 1_000_000

_COPY_AGAIN = "The file is damaged: copy it again from where it was saved"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor, or a slice of one, as the file states it; nothing is checked against anything else.

    Attributes:
        offset: Where in the file it begins.
        name: The tensor's name.
        dims: The dimensions of the whole tensor.
        type_name: MindSpore's name of the element type.
        start: Where its content begins.
        stop: Where its content ends.
    """

    offset: int
    name: str
    dims: tuple[int, ...]
    type_name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Trailer:
    """What stands behind the last value of a file that was saved with a CRC.

    Attributes:
        offset: Where it begins: the number of bytes that the CRC covers.
        crc: The CRC-32 that they should have.
    """

    offset: int
    crc: int


class ValueProblems:
    """The problems of one file, collected so that they can be raised together; of very many, only the first."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._only_unsupported = True

    @property
    def enough(self) -> bool:
        """Whether there are so many that looking for more is of no use."""
        return len(self._problems) >= _MAX_PROBLEMS

    def add(self, error: PetSurgeryError) -> None:
        """Remember the problems of an error."""
        self._problems.extend(error.problems)
        self._only_unsupported &= isinstance(error, UnknownFormatError)

    def raise_if_any(self) -> None:
        """Raise what was collected.

        Raises:
            UnknownFormatError: All of it is sound, but of kinds that are not supported.
            CorruptInputError: Some of it is damage.
        """
        if self._problems:
            raise (UnknownFormatError if self._only_unsupported else CorruptInputError)(self._problems)


def quote_name(name: str) -> str:
    """A tensor's name for a message: short, and with escapes for what a terminal would not show as it is."""
    return repr(name if len(name) <= 120 else f"{name[:100]}...{name[-10:]}")


def walk_values(reader: WireReader, problems: ValueProblems) -> Iterator[Value | Trailer]:
    """The values of a file in its order, and its trailer where it has one.

    Args:
        reader: Over the file.
        problems: Where the errors of single values go; the walk continues behind them until there are enough.

    Raises:
        CorruptInputError: The values do not follow each other without a gap up to the end of the file.
    """
    offset, size = 0, reader.source.size
    count = name_bytes = 0
    previous = "before the first tensor"
    while offset < size and not problems.enough:
        # No field that this walk accepts begins with the "c" of "crc_num": it would be a group.
        if reader.byte(offset) == CRC_MAGIC[0]:
            yield _trailer(reader, offset)
            return
        try:
            field = reader.field(offset, size)
        except CorruptInputError as error:
            raise _at(error, previous) from error
        if field.number == 1:
            value = _value(reader, field, problems)
            count += 1
            if value is not None:
                name_bytes += len(value.name)
                previous = f"behind tensor {quote_name(value.name)}"
                yield value
            if count > _MAX_VALUES or name_bytes > _MAX_ALL_NAME_BYTES:
                found = f"value {count:,}, with {name_bytes:,} characters of names so far"
                expected = f"at most {_MAX_VALUES:,} values and {_MAX_ALL_NAME_BYTES:,} characters of names"
                raise reader.corrupt(offset, found, expected)
        offset = field.stop


def _trailer(reader: WireReader, offset: int) -> Trailer:
    rest = reader.source.size - offset
    data = reader.content(offset, offset + min(rest, TRAILER_BYTES))
    if not data.startswith(CRC_MAGIC[: len(data)]):
        expected = "a value (0a) or a CRC trailer (63 72 63 5f 6e 75 6d)"
        raise reader.corrupt(offset, f"bytes {data[:8].hex(' ')}", expected)
    if rest != TRAILER_BYTES:
        raise reader.corrupt(offset, f"{rest:,} bytes that begin as a CRC trailer", f"{TRAILER_BYTES} bytes")
    crc = int.from_bytes(data[len(CRC_MAGIC) :], "big")
    if crc >= 2**32:
        raise reader.corrupt(offset, f"a CRC trailer with {crc:,}", "a number of 32 bits")
    return Trailer(offset, crc)


def _value(reader: WireReader, outer: WireField, problems: ValueProblems) -> Value | None:
    try:
        expect_type(reader, outer, LENGTH, "a value")
        parts = fields_once(reader, outer, {1: "a name", 2: "a tensor", 3: "a map parameter"})
        name = read_text(reader, parts.get(1), outer, "a name", _MAX_NAME_BYTES)
    except CorruptInputError as error:
        problems.add(error)
        return None
    where = f"{reader.source.path}, byte {outer.offset:,}, tensor {quote_name(name)}"
    if 3 in parts:
        remedy = "Save it without its map parameters (mindspore.experimental.MapParameter)"
        problems.add(UnknownFormatError(Problem(where, "a map parameter", "a tensor", remedy)))
        return None
    if 2 not in parts:
        problems.add(CorruptInputError(Problem(where, "a name without a tensor", "a tensor", _COPY_AGAIN)))
        return None
    try:
        return _tensor(reader, outer.offset, name, parts[2])
    except CorruptInputError as error:
        problems.add(_at(error, f"tensor {quote_name(name)}"))
        return None


def _tensor(reader: WireReader, offset: int, name: str, message: WireField) -> Value:
    dims: list[int] = []
    parts: dict[int, WireField] = {}
    for field in reader.fields(message.start, message.stop):
        if field.number == 1:
            for dim in read_numbers(reader, field, "a dimension"):
                if dim >= 2**63:
                    raise reader.corrupt(field.offset, f"a dimension of {dim - 2**64}", "none below 0")
                if len(dims) == _MAX_AXES:
                    raise reader.corrupt(field.offset, f"more than {_MAX_AXES} dimensions", f"at most {_MAX_AXES}")
                dims.append(dim)
        elif field.number in (2, 3):
            expect_type(reader, field, LENGTH, "a type or a content")
            if field.number in parts:
                raise reader.corrupt(field.offset, f"a second {'type' if field.number == 2 else 'content'}", "one")
            parts[field.number] = field
    type_name = read_text(reader, parts.get(2), message, "a type", _MAX_TYPE_BYTES)
    if 3 not in parts:
        raise reader.corrupt(message.offset, "a tensor without content", "a content, if of 0 bytes")
    return Value(offset, name, tuple(dims), type_name, parts[3].start, parts[3].stop)


def _at(error: CorruptInputError, place: str) -> CorruptInputError:
    return CorruptInputError(replace(problem, where=f"{problem.where}, {place}") for problem in error.problems)
