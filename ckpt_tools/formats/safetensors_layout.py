"""Where every byte of a safetensors file stands, in an order that every known reader takes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.model import FileLayout, NamedTensor, Payload
from ckpt_tools.formats.strict_json import MAX_JSON_BYTES, is_encodable
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from surgery.errors import MismatchError, Problem

__all__ = [
    "INT4",
    "INT4_MARK",
    "INT4_STORED_AS",
    "LENGTH_BYTES",
    "MAX_HEADER_BYTES",
    "METADATA_KEY",
    "layout_safetensors",
]

LENGTH_BYTES = 8
MAX_HEADER_BYTES = MAX_JSON_BYTES
METADATA_KEY = "__metadata__"

# MindSpore's 4-bit integers, one a byte.
INT4 = BY_NAME["int4"]
INT4_STORED_AS = "I8"
INT4_MARK = "Int4"

# The widest element is 8 bytes: a header padded to it and aligned offsets let readers map elements in place.
_ALIGNMENT = 8
# MindSpore's checksum of names and contents: it vouches for the file that it was read from, not for another one.
_CONTENT_CHECKSUM = "crc_num"


def layout_safetensors(tensors: Sequence[NamedTensor], metadata: Mapping[str, str]) -> FileLayout:
    """Where every byte of a file with these tensors stands.

    The order given is kept in the header and in the data, unless an element would then lie across its alignment (a
    bf16 after an odd number of bytes): the tensors of an uneven number of bytes move to the end. Metadata keys that
    are a tensor's name, and MindSpore's checksum of other contents, are left out.

    Raises:
        MismatchError: safetensors has no such type or no such name, or the header would be over its limit.
    """
    _check_writable(tensors)
    names = {name for name, _ in tensors}
    header: dict[str, object] = {}
    strings = {key: text for key, text in metadata.items() if key not in names and key != _CONTENT_CHECKSUM}
    strings |= {name: INT4_MARK for name, tensor in tensors if tensor.dtype == INT4}
    if strings:
        header[METADATA_KEY] = strings

    payloads = []
    offset = 0
    for index in _aligned_order(tensors):
        name, tensor = tensors[index]
        stop = offset + tensor.nbytes
        header[name] = {"dtype": _stored_as(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        if tensor.nbytes:
            payloads.append(Payload(offset, index, 0, tensor.nbytes))
        offset = stop

    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise MismatchError(
            Problem(
                f"the header of {len(tensors)} tensors",
                f"{len(text)} bytes",
                f"at most {MAX_HEADER_BYTES} in a safetensors file",
                "Write several files (--max-shard-size)",
            )
        )
    data_start = LENGTH_BYTES + len(text)
    return FileLayout(
        size=data_start + offset,
        literals=((0, struct.pack("<Q", len(text)) + text),),
        payloads=tuple(replace(payload, offset=data_start + payload.offset) for payload in payloads),
    )


def _check_writable(tensors: Sequence[NamedTensor]) -> None:
    problems = []
    seen: set[str] = set()
    for name, tensor in tensors:
        if name == METADATA_KEY or not is_encodable(name):
            problems.append(
                Problem(f"tensor {quote_name(name)}", "a name that safetensors cannot hold", remedy="Rename it")
            )
        if name in seen:
            problems.append(Problem(f"tensor {quote_name(name)}", "the name twice", "each name once"))
        seen.add(name)
        if _stored_as(tensor.dtype) is None:
            problems.append(
                Problem(
                    f"tensor {quote_name(name)}",
                    f"the type {tensor.dtype}, which safetensors lacks",
                    remedy="Write a .ckpt (--format ckpt), which has it",
                )
            )
    if problems:
        raise MismatchError(problems)


def _stored_as(dtype: DType) -> str | None:
    return INT4_STORED_AS if dtype == INT4 else dtype.safetensors


def _aligned_order(tensors: Sequence[NamedTensor]) -> Sequence[int]:
    """Indices in the order of the file: as given where that aligns every element, else the least change that does."""
    offset = 0
    for _, tensor in tensors:
        if tensor.nbytes and offset % tensor.dtype.itemsize:
            break
        offset += tensor.nbytes
    else:
        return range(len(tensors))
    # A tensor's bytes are a multiple of its element's size, so behind tensors of at least its own evenness it aligns.
    return sorted(range(len(tensors)), key=lambda index: -math.gcd(tensors[index][1].nbytes, _ALIGNMENT))
