"""An output is what its manifest says, or all that differs is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_cases import BASE, PAIRS, add_crc, mindpet, names_of, read, save, write, write_folder
from transform_cases import TENSORS, write_case

from ckpt_tools import merge, open_checkpoint, transform
from ckpt_tools.verifying import verify_output
from surgery.errors import CorruptInputError, InputMissingError, MissingExtraError, UsageError, VerificationError

OUTPUTS = ["out.ckpt", "out.safetensors", "folder"]


def made(folder: Path, output: str, **options: Any) -> Path:
    """An output of BASE with a companion."""
    base = write_folder(folder / "base", BASE)
    (base / "tokenizer.json").write_text("{}")
    transform(base, output=folder / output, **options)
    return folder / output


def ranks(folder: Path, **options: Any) -> Path:
    write_case(folder)
    paths = {"src_strategy": folder / "src.ckpt", "dst_strategy": folder / "dst.ckpt"}
    transform(folder / "in", **paths, output=folder / "out", **options)
    return folder / "out"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def manifest_file(output: Path) -> Path:
    return output / "pet-manifest.json" if output.is_dir() else output.with_name(f"{output.stem}.pet-manifest.json")


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_is_as_it_was_written_passes(tmp_path: Path, output: str) -> None:
    report = verify_output(made(tmp_path, output))
    assert (report.tensors, report.made_by, report.has_digests) == (len(BASE), "transform", True)
    assert report.bytes_read == sum(array.nbytes for array in BASE.values())
    assert report.warnings == ()


def test_rank_folders_are_compared_as_whole_tensors_by_their_strategy(tmp_path: Path) -> None:
    out = ranks(tmp_path)
    assert verify_output(out, src_strategy=tmp_path / "dst.ckpt").tensors == len(TENSORS)
    with pytest.raises(UsageError, match="no strategy"):
        verify_output(out)
    flip(next((out / "rank_1").iterdir()), -1)
    with pytest.raises(VerificationError):
        verify_output(out, src_strategy=tmp_path / "dst.ckpt")


def test_an_iteration_says_itself_how_it_is_cut(tmp_path: Path) -> None:
    out = ranks(tmp_path, format="iteration")
    assert verify_output(out).tensors == len(TENSORS)


@pytest.mark.parametrize("output", OUTPUTS)
def test_one_flipped_bit_is_found_and_named(tmp_path: Path, output: str) -> None:
    out = made(tmp_path, output)
    file = out if out.is_file() else next(out.glob("model-00001-*.safetensors"))
    tensors = open_checkpoint(file).tensors
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if name.endswith("wq.weight"))
    runs = tensor.byte_runs()
    assert runs is not None
    flip(file, runs[0].offset + 5)
    with pytest.raises(VerificationError) as caught:
        verify_output(out)
    assert [problem.where for problem in caught.value.problems] == [name]
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("change", ["a tensor less", "a tensor more", "another type", "another shape"])
def test_other_tensors_than_the_manifests_are_told_by_name(tmp_path: Path, change: str) -> None:
    out = made(tmp_path, "out.ckpt")
    arrays = read(out)
    name = "model.layers.0.attention.wq.weight"
    if change == "a tensor less":
        del arrays[name]
    elif change == "a tensor more":
        arrays["more.weight"] = np.zeros(3, np.float32)
    elif change == "another type":
        arrays[name] = arrays[name].astype(np.float32)
    else:
        arrays[name] = arrays[name].reshape(-1)
    out.unlink()
    save(out, arrays)
    with pytest.raises(VerificationError, match="more.weight" if change == "a tensor more" else name):
        verify_output(out)


def test_companions_are_compared_and_strangers_told(tmp_path: Path) -> None:
    out = made(tmp_path, "folder")
    (out / "notes.txt").write_text("mine")
    assert "notes.txt came after the manifest" in verify_output(out).warnings[0]
    (out / "tokenizer.json").write_text("{ }")
    with pytest.raises(VerificationError, match=r"tokenizer\.json: expected what was written"):
        verify_output(out)
    (out / "tokenizer.json").unlink()
    with pytest.raises(VerificationError, match="no such file"):
        verify_output(out)


def test_all_that_differs_is_told_at_once(tmp_path: Path) -> None:
    out = made(tmp_path, "folder")
    (out / "tokenizer.json").write_text("{ }")
    for file in out.glob("*.safetensors"):
        flip(file, -1)
    with pytest.raises(VerificationError) as caught:
        verify_output(out)
    assert len(caught.value.problems) == 1 + len(list(out.glob("*.safetensors")))


def test_without_digests_names_types_and_shapes_are_compared_and_it_says_so(tmp_path: Path) -> None:
    out = made(tmp_path, "folder", digest=False)
    flip(next(out.glob("*.safetensors")), -1)
    report = verify_output(out)
    assert (report.has_digests, report.bytes_read) == (False, 0)
    assert "contents not" in report.warnings[0]


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_has_no_manifest_is_refused_with_the_way_out(tmp_path: Path, output: str) -> None:
    if output == "folder":
        write_folder(tmp_path / output, BASE)
    else:
        write(tmp_path / output, BASE)
    with pytest.raises(InputMissingError, match="pet-verify BASE ADAPTER MERGED"):
        verify_output(tmp_path / output)


BREAK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda manifest: [manifest],
    "another version": lambda manifest: {**manifest, "format": "pet-manifest-2"},
    "no format": lambda manifest: {key: value for key, value in manifest.items() if key != "format"},
    "no tensors": lambda manifest: {key: value for key, value in manifest.items() if key != "tensors"},
    "tensors as a list": lambda manifest: {**manifest, "tensors": []},
    "an entry of text": lambda manifest: {**manifest, "tensors": {"a": "b"}},
    "a negative size": lambda manifest: {**manifest, "tensors": {"a": {"dtype": "bf16", "shape": [-1], "digest": "0"}}},
    "a short digest": lambda manifest: {**manifest, "tensors": {"a": {"dtype": "bf16", "shape": [1], "digest": "0"}}},
    "other digests": lambda manifest: {**manifest, "digest": "md5"},
    "companions of numbers": lambda manifest: {**manifest, "companions": {"a": 3}},
    "a tool of numbers": lambda manifest: {**manifest, "tool": 3},
}


@pytest.mark.parametrize("how", list(BREAK))
def test_a_broken_manifest_is_an_error_of_the_input(tmp_path: Path, how: str) -> None:
    out = made(tmp_path, "folder")
    file = manifest_file(out)
    file.write_text(json.dumps(BREAK[how](json.loads(file.read_text()))))
    with pytest.raises(CorruptInputError, match=r"pet-manifest\.json"):
        verify_output(out)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"format": NaN}', b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_an_error_of_the_input(tmp_path: Path, text: bytes) -> None:
    out = made(tmp_path, "out.ckpt")
    manifest_file(out).write_bytes(text)
    with pytest.raises(CorruptInputError, match=r"out\.pet-manifest\.json"):
        verify_output(out)


@pytest.mark.parametrize("name", ["/etc/passwd", "../base/tokenizer.json"])
def test_a_companion_outside_of_the_folder_is_not_read(tmp_path: Path, name: str) -> None:
    out = made(tmp_path, "folder")
    manifest = json.loads(manifest_file(out).read_text())
    manifest["companions"][name] = "0" * 64
    manifest_file(out).write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="a name inside the folder"):
        verify_output(out)


def test_a_crc_that_is_added_later_changes_no_tensor(tmp_path: Path) -> None:
    out = made(tmp_path, "out.ckpt")
    add_crc(out)
    verify_output(out)


def test_a_merge_and_its_slices_have_equal_digests(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", mindpet(PAIRS))
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, output=tmp_path / "a.ckpt")
    transform(tmp_path / "a.ckpt", output=tmp_path / "b", max_shard_size="2KB", format="safetensors")
    found = [json.loads(manifest_file(tmp_path / name).read_text())["tensors"] for name in ("a.ckpt", "b")]
    assert found[0] == found[1]
    assert "b" in names_of(tmp_path)


def test_options_that_say_nothing_are_refused(tmp_path: Path) -> None:
    out = made(tmp_path, "out.ckpt")
    with pytest.raises(UsageError, match="one of the two"):
        verify_output(out, public_key="a", sign_key="b")
    with pytest.raises(UsageError, match="--public-key or --sign-key"):
        verify_output(out, signature="a")


@pytest.mark.parametrize("option", ["public_key", "sign_key"])
def test_without_the_extra_signatures_are_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    out = made(tmp_path, "out.ckpt")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pet-surgery\[sign\]'"):
        verify_output(out, **{option: tmp_path / "key.pem"})


def test_a_pipe_in_the_place_of_a_manifest_is_refused_without_waiting(tmp_path: Path) -> None:
    folder = made(tmp_path, "folder")
    (folder / "pet-manifest.json").unlink()
    os.mkfifo(folder / "pet-manifest.json")
    with pytest.raises(CorruptInputError, match="a pipe"):
        verify_output(folder)


def test_a_manifest_of_very_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    folder = made(tmp_path, "folder")
    with (folder / "pet-manifest.json").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CorruptInputError, match="at most"):
        verify_output(folder)
