"""Bytes of safetensors files that no writer would write, and small honest ones, built by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import numpy as np


def file_bytes(header: bytes, data: bytes = b"") -> bytes:
    """A file with this header and data, whatever they are."""
    return struct.pack("<Q", len(header)) + header + data


def describe(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, object]:
    """A tensor's entry in the header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def small_file(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """A sound file of float32 tensors, in the order given."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, array in tensors.items():
        content = array.astype("<f4").tobytes()
        header[name] = describe("F32", list(array.shape), len(data), len(data) + len(content))
        data += content
    return file_bytes(json.dumps(header).encode(), data)
