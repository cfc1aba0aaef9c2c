"""Checkpoint files, parsed and put together by the descriptions of their formats."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ckpt_bytes
import ml_dtypes
import numpy as np
from hostile import describe, file_bytes

Arrays = Mapping[str, np.ndarray]

_TYPES: tuple[tuple[type, str | None, str], ...] = (
    (np.bool_, "Bool", "BOOL"),
    (np.int8, "Int8", "I8"),
    (np.int32, "Int32", "I32"),
    (np.int64, "Int64", "I64"),
    (np.uint8, "UInt8", "U8"),
    (np.float16, "Float16", "F16"),
    (np.float32, "Float32", "F32"),
    (np.float64, "Float64", "F64"),
    (ml_dtypes.bfloat16, "BFloat16", "BF16"),
    (ml_dtypes.float8_e4m3fn, "Float8E4M3FN", "F8_E4M3"),
    (ml_dtypes.float8_e5m2, "Float8E5M2", "F8_E5M2"),
    (ml_dtypes.float8_e8m0fnu, None, "F8_E8M0"),
)
_OF_CKPT = {ckpt: np.dtype(numpy_type) for numpy_type, ckpt, _ in _TYPES if ckpt}
_OF_SAFETENSORS = {name: np.dtype(numpy_type) for numpy_type, _, name in _TYPES}
_TO_CKPT = {dtype: name for name, dtype in _OF_CKPT.items()}
_TO_SAFETENSORS = {dtype: name for name, dtype in _OF_SAFETENSORS.items()}

_CRC_MAGIC = b"crc_num"


def write_file(path: Path, arrays: Arrays, *, crc: bool = False, metadata: Mapping[str, str] | None = None) -> None:
    """A `.ckpt`, which may end with its CRC-32, or a `.safetensors`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
        data = b""
        for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
            content = array.tobytes()
            header[name] = describe(
                _TO_SAFETENSORS[array.dtype], list(array.shape), len(data), len(data) + len(content)
            )
            data += content
        text = json.dumps(header).encode()
        path.write_bytes(file_bytes(text + b" " * (-len(text) % 8), data))
        return
    values = (
        ckpt_bytes.value(name, array.shape, _TO_CKPT[array.dtype], array.tobytes()) for name, array in arrays.items()
    )
    content = b"".join(values)
    trailer = _CRC_MAGIC + zlib.crc32(content).to_bytes(10, "big") if crc else b""
    path.write_bytes(content + trailer)


def read_file(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file; a CRC-32 must be right."""
    data = path.read_bytes()
    return dict(_safetensors(data) if path.suffix == ".safetensors" else _ckpt(data))


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a `.safetensors`."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder of shards, each from the file that the index names, or of the one file in it."""
    (index,) = folder.glob("*.index.json") if list(folder.glob("*.index.json")) else (None,)
    if index is None:
        (path,) = (path for path in folder.iterdir() if path.suffix in (".ckpt", ".safetensors"))
        return read_file(path)
    document = json.loads(index.read_text())
    shards = {name: read_file(folder / name) for name in sorted(set(document["weight_map"].values()))}
    found = {name: shards[shard][name] for name, shard in document["weight_map"].items()}
    assert sum(map(len, shards.values())) == len(found), "a shard holds a tensor that the index places elsewhere"
    assert document["metadata"]["total_size"] == sum(array.nbytes for array in found.values())
    return found


def _safetensors(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    (length,) = struct.unpack_from("<Q", data)
    end = 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        end = max(end, stop)
        dtype = _OF_SAFETENSORS[entry["dtype"]]
        yield name, np.frombuffer(data[8 + length + start : 8 + length + stop], dtype).reshape(entry["shape"])
    assert len(data) == 8 + length + end


def _ckpt(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    if data[-17:-10] == _CRC_MAGIC:
        assert int.from_bytes(data[-10:], "big") == zlib.crc32(data[:-17])
        data = data[:-17]
    for _, value in fields(data):
        parts = dict(fields(value))
        dims, type_name, content = [], b"", b""
        for number, item in fields(parts[2]):
            if number == 1:
                dims.append(item)
            elif number == 2:
                type_name = item
            else:
                content = item
        yield parts[1].decode(), np.frombuffer(content, _OF_CKPT[type_name.decode()]).reshape(dims)


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message, numbers as numbers and all else as bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        number = shift = 0
        while True:
            byte = data[place]
            place += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    while place < len(data):
        key = varint()
        length = varint()
        if key & 7 == 0:
            yield key >> 3, length
        else:
            assert key & 7 == 2
            yield key >> 3, data[place : place + length]
            place += length
