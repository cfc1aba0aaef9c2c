"""A `.ckpt` put together byte by byte, right or wrong, without the code under test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def varint(number: int) -> bytes:
    head = b""
    while number >= 128:
        head += bytes([number % 128 + 128])
        number //= 128
    return head + bytes([number])


def field(number: int, data: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(data)) + data


def tensor(dims: Iterable[int], type_name: str | bytes, content: bytes) -> bytes:
    name = type_name.encode() if isinstance(type_name, str) else type_name
    return b"".join(b"\x08" + varint(dim) for dim in dims) + field(2, name) + field(3, content)


def value(name: str | bytes, dims: Sequence[int], type_name: str | bytes, content: bytes) -> bytes:
    tag = name.encode() if isinstance(name, str) else name
    return field(1, field(1, tag) + field(2, tensor(dims, type_name, content)))


def floats(name: str, count: int = 1) -> bytes:
    return value(name, [count], "Float32", b"\x00\x00\x80\x3f" * count)
