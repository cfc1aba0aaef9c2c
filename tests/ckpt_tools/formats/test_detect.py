"""The front door: what a path is, by its content, and what to do about a path that is nothing."""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import materialise
from hostile import small_file

from ckpt_tools.formats import layout_ckpt, open_checkpoint
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant
from surgery.errors import CorruptInputError, EncryptedInputError, InputMissingError, UnknownFormatError

SAFETENSORS = small_file({"a": np.ones(2)})


def ckpt_bytes() -> bytes:
    array = np.ones(2, np.float32)
    tensors = [("a", Constant(array, dtype_of(array)))]
    return materialise(layout_ckpt(tensors), tensors)


def zip_bytes(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # Without the time of day, which is in the tests' names: processes that run them have to agree on these.
        archive.writestr(zipfile.ZipInfo(name), b"content")
    return buffer.getvalue()


def refusal(tmp_path: Path, data: bytes, name: str = "x.ckpt") -> str:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(tmp_path / name)
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.bin", "x"])
def test_a_file_is_recognised_by_its_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(SAFETENSORS)
    assert open_checkpoint(path).format == "safetensors"
    path.write_bytes(ckpt_bytes())
    assert open_checkpoint(str(path)).format == "ckpt"
    assert open_checkpoint(path).path == path


@pytest.mark.parametrize("count", range(1, 150))
def test_a_ckpt_is_one_whatever_the_length_of_its_first_value(tmp_path: Path, count: int) -> None:
    # With 123 bytes in its first value a file begins as a JSON text does: "\n{".
    array = np.ones(count, np.uint8)
    tensors = [("a", Constant(array, dtype_of(array)))]
    (tmp_path / "x").write_bytes(materialise(layout_ckpt(tensors), tensors))
    assert open_checkpoint(tmp_path / "x").format == "ckpt"


def test_a_ckpt_with_a_brace_where_the_header_of_safetensors_begins_is_a_ckpt(tmp_path: Path) -> None:
    array = np.ones(2, np.float32)
    for length in range(1, 9):
        tensors = [("{" * length, Constant(array, dtype_of(array)))]
        (tmp_path / "x").write_bytes(materialise(layout_ckpt(tensors), tensors))
        assert open_checkpoint(tmp_path / "x").format == "ckpt"


def test_a_link_that_the_user_gives_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(SAFETENSORS)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.safetensors").symlink_to("../blob")
    assert open_checkpoint(tmp_path / "sub" / "x.safetensors").format == "safetensors"


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "param_name_map.json"])
def test_an_index_stands_for_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(SAFETENSORS)
    (tmp_path / name).write_text(json.dumps({"weight_map": {"a": "m.safetensors"}}))
    checkpoint = open_checkpoint(tmp_path / name)
    assert checkpoint.path == tmp_path
    assert checkpoint.shards == {"a": "m.safetensors"}
    assert open_checkpoint(tmp_path).shards == checkpoint.shards


def test_an_index_that_was_given_must_have_a_weight_map(tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text("{}")
    with pytest.raises(CorruptInputError, match="weight_map"):
        open_checkpoint(tmp_path / "x.index.json")


def test_an_empty_file_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").touch()
    with pytest.raises(CorruptInputError, match="an empty file"):
        open_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("magic", [0x7F3A5ED8, 0x7F3A5ED9, 0x7F3A5EDA])
def test_an_encrypted_ckpt_is_told_from_a_broken_one(tmp_path: Path, magic: int) -> None:
    (tmp_path / "x.ckpt").write_bytes(struct.pack("<I", magic) + b"\x10" * 60)
    with pytest.raises(EncryptedInputError, match="dec_key"):
        open_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("data", "kind", "remedy"),
    [
        (zip_bytes("archive/data.pkl"), "pickle of torch", "save_file"),
        (zip_bytes("my_model/data.pkl"), "pickle of torch", "save_file"),
        (zip_bytes("whatever"), "zip archive", "save_file"),
        (zip_bytes("arr_0.npy"), "npz", "save_file"),
        (b"\x80\x02\x8a\x0al\xfc\x9c", "pickle", "weights_only=True"),
        (b"GGUF\x03\0\0\0", "GGUF", "quantised"),
        (b"\x89HDF\r\n\x1a\n\0", "HDF5", "Convert"),
        (b"\x93NUMPY\x01\0", "numpy", "save_file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git-lfs pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page", "Download"),
        (b"\n<html><head><title>403", "web page", "Download"),
        (b'{"error": "Repository not found"}', "JSON", "Pass the checkpoint"),
        (b"\x1f\x8b\x08\0", "gzip", "Unpack"),
    ],
)
@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x"])
def test_a_foreign_file_is_refused_with_what_it_is_and_what_to_do(
    tmp_path: Path, data: bytes, kind: str, remedy: str, name: str
) -> None:
    message = refusal(tmp_path, data, name)
    assert kind in message
    assert remedy in message


def test_bytes_of_no_format_are_refused_with_the_first_of_them(tmp_path: Path) -> None:
    assert "01 02 03" in refusal(tmp_path, b"\x01\x02\x03", "x")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_a_file_damaged_beyond_recognition_is_corrupt_by_the_rules_that_its_name_asks_for(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"\x01\x02\x03" * 10)
    with pytest.raises(CorruptInputError):
        open_checkpoint(tmp_path / name)


def missing(path: Path) -> str:
    with pytest.raises(InputMissingError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def test_a_missing_path_is_answered_with_near_names(tmp_path: Path) -> None:
    (tmp_path / "llama-7b.ckpt").touch()
    assert f"Is it {tmp_path / 'llama-7b.ckpt'}?" in missing(tmp_path / "lama-7b.ckpt")
    assert "Is it" not in missing(tmp_path / "zzz")


def test_a_missing_folder_on_the_way_is_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    message = missing(tmp_path / "model" / "deep" / "x.ckpt")
    assert message.startswith(f"{tmp_path / 'model'}:")
    assert f"Is it {tmp_path / 'models'}" in message


def test_a_broken_link_is_missing_with_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").symlink_to("gone.ckpt")
    assert "a link to gone.ckpt" in missing(tmp_path / "x.ckpt")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.ckpt")
    with pytest.raises(CorruptInputError, match="a pipe"):
        open_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "file.ckpt/inside"])
def test_a_path_that_cannot_be_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.ckpt").touch()
    missing(tmp_path / name)
