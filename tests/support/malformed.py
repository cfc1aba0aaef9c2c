"""Files and folders of `tests/faults.md` that no command may accept, by the fault's number and what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from ckpt_bytes import field, floats, tensor, value, varint
from folders import ONE, TWO, add_index
from hostile import describe, file_bytes

from ckpt_tools.formats.ckpt import crc_trailer

__all__ = ["FILES", "FLIPPED", "FOLDERS"]

F = b"\x00\x00\x80\x3f"


def flipped() -> bytes:
    data = bytearray(floats("a", 100))
    trailer = crc_trailer(crc32(data))
    data[60] ^= 1
    return bytes(data) + trailer


CKPT = {
    "1 empty": b"",
    "2 cut in the content": floats("a", 9)[:-1],
    "2 cut in the head": floats("a") + floats("b")[:3],
    "4 a flipped bit with CRC": flipped(),
    "6 half a trailer": floats("a") + b"crc_num\0\0",
    "8 an overlong number": floats("a") + b"\x0a" + b"\x80" * 11 + b"\x01",
    "9 a length past the end": floats("a") + b"\x0a" + varint(2**40),
    "10 deep groups": floats("a") + b"\x4b" * 10_000,
    "12 no name": field(1, field(2, tensor([1], "Float32", F))),
    "12 no type": field(1, field(1, b"a") + field(2, b"\x08\x01" + field(3, F))),
    "13 a name twice": floats("a") * 2,
    "14 a name twice, apart": floats("a") + floats("b") + floats("a"),
    "15 interleaved slices": b"".join(value(name, [2], "Float32", F) for name in "abab"),
    "16 slices of two types": value("a", [2], "Float32", F) + value("a", [2], "Int32", F),
    "17 short content": value("a", [2], "Float32", F) + floats("b"),
    "18 long content": value("a", [1], "Float32", F * 2),
    "19 huge dimensions": value("a", [2**62], "Float32", F),
    "19 negative dimensions": value("a", [2**64 - 1], "Float32", F),
    "20 huge dimensions with little content": value("a", [2**31, 2**29], "Float32", F),
    "22 an unknown type": value("a", [1], "Float4", b"\0"),
    "23 a bad text": value("a", [0], "str", b"x\0\0"),
    "24 a name of a megabyte": floats("a" * 2**20),
    "24 no name": floats(""),
    "26 encrypted": bytes.fromhex("d85e3a7f22000000") + bytes(50),
    "27 a map parameter": floats("a") + field(1, field(1, b"m") + field(3, field(1, tensor([1], "int32", bytes(4))))),
}

SAFETENSORS = {
    "28 a header of 2^63 bytes": b"\xff" * 7 + b"\x7f{}",
    "28 a header over the limit": (100_000_001).to_bytes(8, "little") + b"{" + b" " * 100,
    "29 duplicate keys": file_bytes(b"{%s,%s}" % ((b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2), F),
    "30 a hole": file_bytes(json.dumps({"a": describe("F32", [1], 4, 8)}).encode(), F * 2),
    "30 an overlap": file_bytes(
        json.dumps({"a": describe("F32", [1], 0, 4), "b": describe("F32", [1], 0, 4)}).encode(), F
    ),
    "30 trailing bytes": file_bytes(json.dumps({"a": describe("F32", [1], 0, 4)}).encode(), F + b"\0"),
    "30 cut": file_bytes(json.dumps({"a": describe("F32", [2], 0, 8)}).encode(), F),
    "32 metadata that is no string": file_bytes(
        json.dumps({"__metadata__": {"x": 1}, "a": describe("F32", [1], 0, 4)}).encode(), F
    ),
    "37 deep JSON": file_bytes(b'{"a":' + b"[" * 100_000),
}


def outside(folder: Path) -> None:
    (folder.parent / "secret.safetensors").write_bytes((folder / TWO).read_bytes())
    add_index(folder, {"a": ONE, "b": ONE, "c": "../secret.safetensors"})


def absolute(folder: Path) -> None:
    add_index(folder, {"a": ONE, "b": ONE, "c": str(folder / TWO)})


def linked(folder: Path) -> None:
    (folder / TWO).rename(folder.parent / "secret.safetensors")
    (folder / TWO).symlink_to("../secret.safetensors")


def piped(folder: Path) -> None:
    (folder / TWO).unlink()
    os.mkfifo(folder / TWO)


def device(folder: Path) -> None:
    (folder / TWO).unlink()
    (folder / TWO).symlink_to("/dev/zero")


def missing(folder: Path) -> None:
    (folder / TWO).unlink()


def elsewhere(folder: Path) -> None:
    add_index(folder, {"a": ONE, "b": TWO, "c": TWO})


def in_two(folder: Path) -> None:
    (folder / TWO).write_bytes((folder / ONE).read_bytes())


FOLDERS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "34 ../": (4, outside),
    "34 absolute": (4, absolute),
    "34 a link that leaves": (4, linked),
    "34 a pipe": (4, piped),
    "34 a device": (4, device),
    "35 a shard missing": (3, missing),
    "35 a tensor in another shard": (4, elsewhere),
    "35 a tensor in two": (4, in_two),
}

FLIPPED = "4 a flipped bit with CRC.ckpt"
"""Sound headers: what reads no contents reads it."""

FILES = {
    **{f"{key}.ckpt": data for key, data in CKPT.items()},
    **{f"{k}.safetensors": d for k, d in SAFETENSORS.items()},
}
