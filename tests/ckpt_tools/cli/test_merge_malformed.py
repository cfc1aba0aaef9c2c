"""Malformed files through pet-merge, as base and as adapter: the right exit code, and nothing is touched or left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ckpt_bytes import field, value, varint
from commands import Command
from folders import INDEX, write_two_shards
from hostile import describe, file_bytes
from malformed import FILES, FOLDERS
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

F = b"\x00\x00\x80\x3f"


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
