"""Where every byte of a `.ckpt` file stands: exactly as `mindspore.save_checkpoint` of 2.9.0 writes Tensors."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_tools.formats.ckpt_values import CRC_MAGIC, quote_name
from ckpt_tools.formats.model import FileLayout, NamedTensor, Payload
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError, Problem

__all__ = ["SLICE_BYTES", "crc_trailer", "layout_ckpt"]

SLICE_BYTES = 512 * 2**20
"""The most content of a value; MindSpore's `SLICE_SIZE`."""


def layout_ckpt(tensors: Sequence[NamedTensor], slice_bytes: int = SLICE_BYTES) -> FileLayout:
    """Lay tensors out in the order in which they are given.

    A tensor of more than `slice_bytes` becomes several values with the same name and dimensions. A tensor without
    elements becomes a value with an empty content, which MindSpore's own writer leaves out; its loader reads such a
    value as it is, but for the shape (0,), which it takes for a scalar.

    Args:
        tensors: The names, and what each one holds.
        slice_bytes: The most content of a value; a parameter for the tests.

    Raises:
        MismatchError: A tensor has a type that the format has no name for, or a name or a shape that it cannot keep.
    """
    problems = list(_refusals(tensors))
    if problems:
        raise MismatchError(problems)
    literals: list[tuple[int, bytes]] = []
    payloads: list[Payload] = []
    offset = 0
    for index, (name, tensor) in enumerate(tensors):
        # MindSpore cannot read a text in slices: it takes the length of the last one for the whole.
        step = slice_bytes if tensor.dtype.name != "str" else max(tensor.nbytes, 1)
        for start in range(0, tensor.nbytes or 1, step):
            stop = min(start + step, tensor.nbytes)
            header = _header(name, tensor, stop - start)
            literals.append((offset, header))
            offset += len(header)
            if stop > start:
                payloads.append(Payload(offset, index, start, stop))
            offset += stop - start
    return FileLayout(offset, literals, payloads)


def crc_trailer(value: int) -> bytes:
    """The bytes behind the last value that state the CRC-32 of all bytes before."""
    return CRC_MAGIC + value.to_bytes(10, "big")


def _header(name: str, tensor: LazyTensor, content_bytes: int) -> bytes:
    """What stands before the content of a value: the lengths of three nested messages are known from within."""
    dims = (0,) if tensor.dtype.name == "str" else tensor.shape
    tensor_head = b"".join(b"\x08" + _varint(dim) for dim in dims)
    tensor_head += _field(0x12, str(tensor.dtype.mindspore).encode()) + b"\x1a" + _varint(content_bytes)
    value_head = _field(0x0A, name.encode()) + b"\x12" + _varint(len(tensor_head) + content_bytes)
    return b"\x0a" + _varint(len(value_head) + len(tensor_head) + content_bytes) + value_head + tensor_head


def _field(key: int, data: bytes) -> bytes:
    return bytes([key]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _refusals(tensors: Sequence[NamedTensor]) -> list[Problem]:
    problems = []
    seen: set[str] = set()
    for name, tensor in tensors:
        where = f"tensor {quote_name(name)}"
        if not name or name in seen:
            found = "the same name twice" if name else "an empty name"
            problems.append(Problem(where, found, "a name of its own for each tensor"))
        seen.add(name)
        if any("\ud800" <= character <= "\udfff" for character in name):
            problems.append(Problem(where, "half a surrogate pair in the name", "a name that UTF-8 can encode"))
        if tensor.dtype.mindspore is None:
            formats = "safetensors" if tensor.dtype.safetensors else "no format that this project writes"
            found = f"element type {tensor.dtype}, for which a .ckpt has no name"
            remedy = f"It fits into: {formats}. Choose that format or another --dtype"
            problems.append(Problem(where, found, remedy=remedy))
        if tensor.dtype.name == "str" and (len(tensor.shape) != 1 or not tensor.size):
            # A .ckpt keeps no dimensions of a text, and MindSpore writes an empty one as one NUL.
            found = f"a text of shape {list(tensor.shape)}"
            problems.append(Problem(where, found, "one axis with at least one code point"))
    return problems
