"""Malformed files through pet-merge, as base and as adapter: the right exit code, and nothing is touched or left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from ckpt_bytes import field, floats, tensor, value, varint
from commands import Command
from folders import INDEX, ONE, TWO, add_index, write_two_shards
from hostile import describe, file_bytes
from merge_cases import (
    RANK,
    Update,
    add_crc,
    assert_all_merged,
    factors,
    hugging_face,
    llama,
    random,
    read,
    save,
    tree,
    updates,
    with_manifest_of,
    write_folder,
)

from ckpt_tools.formats.ckpt import crc_trailer

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
    "35 a shard missing": (3, missing),
    "35 a tensor in another shard": (4, elsewhere),
    "35 a tensor in two": (4, in_two),
}

FILES = {
    **{f"{key}.ckpt": data for key, data in CKPT.items()},
    **{f"{k}.safetensors": d for k, d in SAFETENSORS.items()},
}


def assert_refused(command: Command, folder: Path, code: int, *arguments: str) -> None:
    before = tree(folder) if not any(path.is_fifo() for path in folder.rglob("*")) else None
    names = sorted(str(path) for path in folder.rglob("*"))
    found, out, err = command(*arguments, "--alpha", "8")
    assert found == code, err
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert len(err) < 20_000
    assert sorted(str(path) for path in folder.rglob("*")) == names
    if before is not None:
        assert tree(folder) == before


@pytest.mark.parametrize("role", ["base", "adapter"])
@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file_is_refused(command: Command, tmp_path: Path, name: str, role: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert_refused(command, tmp_path, 4, *((name, "lora.ckpt") if role == "base" else ("base.ckpt", name)))


@pytest.mark.parametrize("role", ["base", "adapter"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_malformed_folder_is_refused(command: Command, tmp_path: Path, name: str, role: str) -> None:
    code, spoil = FOLDERS[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    write_two_shards(folder)
    spoil(folder)
    assert_refused(command, tmp_path, code, *(("folder", "lora.ckpt") if role == "base" else ("base.ckpt", "folder")))


def merged(command: Command, base: str, lora: str = "lora.ckpt", out: str = "out.ckpt") -> str:
    code, _, err = command(base, lora, "--alpha", "8", "-q", "-o", out)
    assert code == 0, err
    return err


def test_7_the_magic_of_a_crc_inside_of_data_is_data(command: Command, tmp_path: Path) -> None:
    text = np.frombuffer(b"crc_num" + bytes(10) + b"crc_num\0\0", np.uint8)
    base = {**llama(), "note": text}
    save(tmp_path / "base.ckpt", base)
    merged(command, "base.ckpt")
    assert_all_merged(tmp_path / "out.ckpt", base, updates(factors(), 2.0))


def test_11_fields_in_another_order_packed_and_unknown_ones_are_read(command: Command, tmp_path: Path) -> None:
    weight = random(0, 8, 8)
    packed = field(3, weight.tobytes()) + field(2, b"Float32") + field(1, varint(8) * 2) + field(9, b"new")
    (tmp_path / "base.ckpt").write_bytes(field(1, field(7, b"?") + field(2, packed) + field(1, b"x.weight")))
    a, b = random(1, RANK, 8), random(2, 8, RANK)
    save(tmp_path / "lora.ckpt", {"x.lora_a": a, "x.lora_b": b})
    merged(command, "base.ckpt")
    assert_all_merged(tmp_path / "out.ckpt", {"x.weight": weight}, {"x.weight": Update(b, a, 2.0)})


def test_21_tensors_without_elements_scalars_and_dims_of_0_come_along(command: Command, tmp_path: Path) -> None:
    odd = (
        value("scalar", [0], "Float32", F)
        + value("none", [0, 3], "Float32", b"")
        + value("text", [0], "str", b"x\0\0\0")
    )
    (tmp_path / "base.ckpt").write_bytes((tmp_path / "base.ckpt").read_bytes() + odd)
    merged(command, "base.ckpt")
    result = read(tmp_path / "out.ckpt")
    assert (result["scalar"].shape, result["scalar"].item()) == ((), 1.0)
    assert result["none"].shape == (0, 3)
    assert result["text"].tobytes() == b"x\0\0\0"


@pytest.mark.parametrize("name", ["a\0b", "../../etc/passwd", "\u202egpj.exe", " ", "größe"])
@pytest.mark.parametrize("out", ["out.ckpt", "out.safetensors"])
def test_24_strange_names_come_along_as_names(command: Command, tmp_path: Path, name: str, out: str) -> None:
    base = {**llama(), name: random(0, 3)}
    save(tmp_path / "base.ckpt", base)
    before = sorted(path.name for path in tmp_path.iterdir())
    merged(command, "base.ckpt", out=out)
    assert read(tmp_path / out)[name].tobytes() == base[name].tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, *with_manifest_of(out)])


def test_22_types_that_nobody_computes_with_come_along_byte_for_byte(command: Command, tmp_path: Path) -> None:
    odd = value("f8", [2], "Float8E4M3FN", b"\x38\x7f") + value("c", [1], "Complex64", bytes(range(8)))
    (tmp_path / "base.ckpt").write_bytes((tmp_path / "base.ckpt").read_bytes() + odd)
    merged(command, "base.ckpt")
    assert (tmp_path / "out.ckpt").read_bytes().endswith(odd)
    code, _, err = command("base.ckpt", "lora.ckpt", "--alpha", "8", "--dtype", "fp32", "-o", "out.safetensors")
    assert code == 0, err
    assert read(tmp_path / "out.safetensors")["f8"].tobytes() == b"\x38\x7f"


def test_25_a_file_of_more_than_4_gib_is_planned(command: Command, tmp_path: Path) -> None:
    size = 5 * 2**30
    inner = b"\x08" + varint(size) + field(2, b"Int8") + b"\x1a" + varint(size)
    outer = field(1, b"big") + b"\x12" + varint(len(inner) + size) + inner
    with open(tmp_path / "base.ckpt", "ab") as file:
        file.write(b"\x0a" + varint(len(outer) + size) + outer)
        file.truncate(file.tell() + size)
    code, out, err = command("base.ckpt", "lora.ckpt", "--alpha", "8", "--dry-run", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["bytes_written"] > size
    assert report["peak_memory_bytes"] <= 256 * 2**20


def test_31_a_header_in_another_order_than_the_data_is_written_in_order(command: Command, tmp_path: Path) -> None:
    weight, other = random(0, 8, 8), random(1, 8)
    header = {"other": describe("F32", [8], 256, 288), "x.weight": describe("F32", [8, 8], 0, 256)}
    (tmp_path / "base.safetensors").write_bytes(
        file_bytes(json.dumps(header).encode(), weight.tobytes() + other.tobytes())
    )
    a, b = random(1, RANK, 8), random(2, 8, RANK)
    save(tmp_path / "lora.ckpt", {"x.lora_a": a, "x.lora_b": b})
    merged(command, "base.safetensors", out="out.safetensors")
    data = (tmp_path / "out.safetensors").read_bytes()
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    del entries["__metadata__"]
    assert [e["data_offsets"][0] for e in entries.values()] == sorted(e["data_offsets"][0] for e in entries.values())
    assert set(entries) == {"other", "x.weight"}


def test_33_a_metadata_key_that_is_a_tensors_name_is_left_out(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "plain.safetensors", llama(), {"lm_head.weight": "mine", "format": "pt", "kept": "yes"})
    data = (tmp_path / "plain.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["lm_head.weight"] = "mine"
    (tmp_path / "base.safetensors").write_bytes(file_bytes(json.dumps(header).encode(), data[8 + size :]))
    merged(command, "base.safetensors", out="out.safetensors")
    data = (tmp_path / "out.safetensors").read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert "lm_head.weight" not in metadata
    assert metadata["kept"] == "yes"


def test_36_a_wrong_total_size_is_a_warning_and_is_put_right(command: Command, tmp_path: Path) -> None:
    base = hugging_face(llama())
    folder = write_folder(tmp_path / "base", base, shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["metadata"]["total_size"] = 1
    (folder / INDEX).write_text(json.dumps(index))
    err = merged(command, "base", out="out")
    assert err.startswith("warning: ")
    assert "total_size is 1" in err
    right = json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]["total_size"]
    assert right == sum(array.nbytes for array in base.values())


def test_4_a_flipped_bit_goes_unseen_only_where_the_user_asks_for_it(command: Command, tmp_path: Path) -> None:
    base = llama()
    add_crc(tmp_path / "base.ckpt")
    data = bytearray((tmp_path / "base.ckpt").read_bytes())
    data[-40] ^= 1
    (tmp_path / "base.ckpt").write_bytes(data)
    assert command("base.ckpt", "lora.ckpt", "--alpha", "8")[0] == 4
    code, _, _ = command("base.ckpt", "lora.ckpt", "--alpha", "8", "--no-check-crc", "-o", "out.ckpt")
    assert code == 0
    assert list(read(tmp_path / "out.ckpt")) == list(base)
