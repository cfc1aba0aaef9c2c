"""Changes of inputs that keep their outer form, so that fuzzing gets behind it: lengths stay right, JSON stays JSON."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ckpt_bytes import varint

__all__ = ["mutate_ckpt", "mutate_json", "mutate_safetensors", "mutate_wire"]

Plain = Callable[[bytes], bytes]

_NUMBERS = (0, 1, 2, 3, 8, 16, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES = (
    *(None, True, False, "", [], {}, -1, 0, 1, 2, 4, 8, 2**31, 2**53, 2**63, 2**64, 10**400, -(2**63)),
    *(0.5, -0.0, 1e308, float("inf"), float("nan"), "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "(", "(a+)+$"),
)
_TRAILER = b"crc_num"


class _Members(list):  # type: ignore[type-arg]  # of pairs; a JSON object whose keys may repeat
    pass


def mutate_json(data: bytes, random: Random, plain: Plain) -> bytes:
    """Change the value of a JSON text, or bytes of one that is none."""
    if random.random() < 0.1:
        return plain(data)
    try:
        document = json.loads(data, object_pairs_hook=_Members)
    except (ValueError, RecursionError):
        return plain(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _change(document, random, plain)
    return _dump(document).encode("utf-8", "surrogatepass")


def mutate_safetensors(data: bytes, random: Random, plain: Plain) -> bytes:
    """Change the header or the data, and state the header's length as it is then."""
    if len(data) < 8 or random.random() < 0.1:
        return plain(data)
    (length,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.8:
        header = mutate_json(header, random, plain)
    else:
        rest = plain(rest)
    return struct.pack("<Q", len(header)) + header + rest


@dataclass
class _Field:
    number: int
    wire_type: int
    content: int | bytes | list[_Field]


def mutate_wire(data: bytes, random: Random, plain: Plain) -> bytes:
    """Change a field of a protobuf message, at any depth, and state the lengths of those around it."""
    fields = _parse(data, 4)
    if fields is None or random.random() < 0.1:
        return plain(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        _change_fields(fields, random, plain)
    return _encode(fields)


def mutate_ckpt(data: bytes, random: Random, plain: Plain) -> bytes:
    """The same of a `.ckpt`, whose CRC stays right where it has one."""
    has_trailer = len(data) >= 17 and data[-17:-10] == _TRAILER
    changed = mutate_wire(data[:-17] if has_trailer else data, random, plain)
    if has_trailer == (random.random() < 0.9):
        changed += _TRAILER + zlib.crc32(changed).to_bytes(10, "big")
    return changed


def _change(value: object, random: Random, plain: Plain) -> object:
    """The value with a change somewhere in it."""
    if isinstance(value, _Members) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        key, inner = value[place]
        match random.randrange(12):
            case 0:
                del value[place]
            case 1:
                value.insert(random.randrange(len(value) + 1), (key, inner))
            case 2:
                value[place] = (_change_text(key, random, plain), inner)
            case 3:
                value[place] = (key, random.choice(value)[1])
            case 4:
                random.shuffle(value)
            case _:
                value[place] = (key, _change(inner, random, plain))
        return value
    if type(value) is list and value and random.random() < 0.8:
        place = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                del value[place]
            case 1:
                value.insert(place, value[place])
            case 2:
                value.append(random.choice(_VALUES))
            case _:
                value[place] = _change(value[place], random, plain)
        return value
    if isinstance(value, str) and random.random() < 0.7:
        return _change_text(value, random, plain)
    if type(value) in (int, float) and random.random() < 0.5:
        return value + random.choice((-1, 1, 4, -value, value))
    if random.random() < 0.03:
        for _ in range(random.choice((2, 30, 1100))):
            value = [value]
        return value
    return random.choice(_VALUES)


def _change_text(text: str, random: Random, plain: Plain) -> str:
    if text.startswith("{") and random.random() < 0.9:  # a document in a document
        return mutate_json(text.encode("utf-8", "surrogatepass"), random, plain).decode("utf-8", "replace")
    return plain(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")


def _dump(value: object) -> str:
    """JSON in which objects may have a key twice; of any depth."""
    parts: list[str] = []
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Raw):
            parts.append(item.text)
        elif isinstance(item, _Members):
            parts.append("{")
            waiting.append(_Raw("}"))
            for number, (key, inner) in reversed(list(enumerate(item))):
                waiting += [inner, _Raw(f"{',' if number else ''}{json.dumps(key)}:")]
        elif isinstance(item, list):
            parts.append("[")
            waiting.append(_Raw("]"))
            for number, inner in reversed(list(enumerate(item))):
                waiting += [inner, _Raw("," if number else "")]
        elif type(item) is int and abs(item) > 10**300:
            parts.append(f"{'-' * (item < 0)}1{'0' * 400}")
        else:
            parts.append(json.dumps(item))
    return "".join(parts)


@dataclass(frozen=True)
class _Raw:
    text: str


def _parse(data: bytes, depth: int) -> list[_Field] | None:
    """The fields of a message, or None where the bytes are none."""
    fields: list[_Field] = []
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        number, wire_type = key >> 3, key & 7
        if not number or place > len(data):
            return None
        if wire_type == 0:
            content, place = _read_varint(data, place)
            fields.append(_Field(number, 0, content))
        elif wire_type in (1, 2, 5):
            length, place = _read_varint(data, place) if wire_type == 2 else (4 if wire_type == 5 else 8, place)
            inner, place = data[place : place + length], place + length
            nested = _parse(inner, depth - 1) if wire_type == 2 and depth and inner else None
            fields.append(_Field(number, wire_type, inner if nested is None else nested))
        else:
            return None
        if place > len(data):
            return None
    return fields


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value % 2**64, place
    return value % 2**64, len(data) + 1


def _encode(fields: list[_Field]) -> bytes:
    parts = []
    for field in fields:
        content = field.content
        key = varint(field.number * 8 + field.wire_type)
        if isinstance(content, int):
            parts.append(key + varint(content))
        else:
            inner = _encode(content) if isinstance(content, list) else content
            parts.append(key + (varint(len(inner)) if field.wire_type == 2 else b"") + inner)
    return b"".join(parts)


def _change_fields(fields: list[_Field], random: Random, plain: Plain) -> None:
    if not fields:
        fields.append(_Field(random.randrange(1, 8), 0, random.choice(_NUMBERS)))
        return
    place = random.randrange(len(fields))
    field = fields[place]
    if isinstance(field.content, list) and random.random() < 0.75:
        _change_fields(field.content, random, plain)
        return
    match random.randrange(10):
        case 0:
            del fields[place]
        case 1:
            fields.insert(random.randrange(len(fields) + 1), field)
        case 2:
            field.number = random.randrange(1, 9)
        case 3:
            random.shuffle(fields)
        case 4:
            fields.append(_Field(random.randrange(1, 8), 0, random.choice(_NUMBERS)))
        case _ if isinstance(field.content, int):
            field.content = random.choice((*_NUMBERS, max(field.content - 1, 0), field.content + 1))
        case _:
            content = _encode(field.content) if isinstance(field.content, list) else field.content
            field.content = plain(content)
