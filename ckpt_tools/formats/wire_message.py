"""Messages whose definition is known: fields that may stand once, texts, and repeated numbers, packed or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckpt_tools.formats.ckpt_wire import LENGTH, VARINT, WireField, WireReader

__all__ = ["expect_type", "fields_once", "read_numbers", "read_text"]


def expect_type(reader: WireReader, field: WireField, wire_type: int, what: str) -> None:
    """Make sure how a field is encoded.

    Raises:
        CorruptInputError: It is encoded otherwise; protobuf would take it for an unknown field.
    """
    if field.wire_type != wire_type:
        raise reader.corrupt(field.offset, f"wire type {field.wire_type} for {what}", f"wire type {wire_type}")


def fields_once(reader: WireReader, outer: WireField, known: Mapping[int, str]) -> dict[int, WireField]:
    """The messages and texts in a message of which each may stand once, by their number; others are passed over.

    Args:
        reader: Over the file.
        outer: The message.
        known: Number to what such a field is, for an error.

    Raises:
        CorruptInputError: A field stands twice (protobuf would take the last one, or join the two), or is encoded
            otherwise.
    """
    found: dict[int, WireField] = {}
    for field in reader.fields(outer.start, outer.stop):
        if field.number in known:
            expect_type(reader, field, LENGTH, known[field.number])
            if field.number in found:
                raise reader.corrupt(field.offset, f"{known[field.number]} a second time in one value", "one")
            found[field.number] = field
    return found


def read_text(reader: WireReader, field: WireField | None, outer: WireField, what: str, max_bytes: int) -> str:
    """A text that has to be there.

    Args:
        reader: Over the file.
        field: Where the text is, or None where the message has none.
        outer: The message.
        what: What the text is, for an error.
        max_bytes: How long it may be.

    Raises:
        CorruptInputError: It is missing, empty, too long, or not UTF-8.
    """
    if field is None or field.start == field.stop:
        raise reader.corrupt(outer.offset, f"a value without {what}", what)
    if field.stop - field.start > max_bytes:
        found = f"{what} of {field.stop - field.start:,} bytes"
        raise reader.corrupt(field.offset, found, f"at most {max_bytes:,} bytes")
    data = reader.content(field.start, field.stop)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise reader.corrupt(field.offset, f"{what} of {data[:40]!r}", "valid UTF-8") from error


def read_numbers(reader: WireReader, field: WireField, what: str) -> Iterator[int]:
    """The unsigned numbers of a repeated field: one, or many where they are packed.

    Raises:
        CorruptInputError: It is encoded otherwise, or cut short.
    """
    if field.wire_type == VARINT:
        yield field.value
        return
    expect_type(reader, field, LENGTH, what)
    start = field.start
    while start < field.stop:
        number, start = reader.varint(start, field.stop)
        yield number
