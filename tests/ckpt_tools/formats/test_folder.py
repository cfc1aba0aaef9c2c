"""What of a folder is followed: links, pipes, names that lead elsewhere; and which files are carried along."""

import os
from pathlib import Path

import pytest
from folders import INDEX, ONE, TWO, add, add_index, write_two_shards

from ckpt_tools.formats.folder import natural_key
from ckpt_tools.formats.sharded import read_folder
from surgery.errors import CorruptInputError, InputMissingError


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_two_shards(tmp_path)
    return tmp_path


def test_companions_are_all_regular_files_but_weights_indexes_and_hidden_ones(sharded: Path) -> None:
    for name in ("config.json", "tokenizer.model", "vocab.txt", "LICENSE", ".gitattributes", "training_args.bin"):
        (sharded / name).write_text("")
    for name in (
        "pytorch_model.bin",
        "x.gguf",
        "consolidated.00.pth",
        "model.onnx",
        "model.safetensors.index.fp16.json",
    ):
        (sharded / name).write_text("")
    (sharded / "onnx").mkdir()
    names = [str(path) for path in read_folder(sharded).companions]
    assert names == ["LICENSE", "config.json", "tokenizer.model", "vocab.txt"]


def test_a_companion_that_leads_out_of_the_folder_or_is_a_pipe_is_left_out_with_a_warning(sharded: Path) -> None:
    (sharded / "notes.txt").symlink_to("/etc/hostname")
    os.mkfifo(sharded / "pipe")
    (sharded / "circle").symlink_to("circle")
    (sharded / "nowhere").symlink_to("absent")
    checkpoint = read_folder(sharded)
    assert checkpoint.companions == ()
    assert len(checkpoint.warnings) == 4


def test_a_hub_cache_with_links_to_its_blobs_is_read(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    revision = cache / "snapshots" / "0123abc"
    add(cache / "blobs", "c0ffee", "a")
    (cache / "blobs" / "beef").write_text("{}")
    revision.mkdir(parents=True)
    (revision / "model.safetensors").symlink_to("../../blobs/c0ffee")
    (revision / "config.json").symlink_to("../../blobs/beef")
    for path in (revision, revision / ".." / "0123abc"):
        checkpoint = read_folder(path)
        assert list(checkpoint.tensors) == ["a"]
        assert checkpoint.companions == (Path("config.json"),)


def test_a_folder_reached_by_a_link_is_read(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(sharded)
    assert len(read_folder(link).tensors) == 3


def test_a_link_within_the_folder_is_followed(sharded: Path) -> None:
    (sharded / TWO).rename(sharded / "stored")
    (sharded / TWO).symlink_to("stored")
    assert len(read_folder(sharded).tensors) == 3


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/../../x", "..", "", ".", "a\\b", "nul\0"])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(sharded: Path, name: str) -> None:
    add(sharded.parent, "x.safetensors", "c")
    add_index(sharded, {"a": ONE, "b": ONE, "c": name})
    with pytest.raises(CorruptInputError, match="a name inside the folder"):
        read_folder(sharded)
    (sharded.parent / "x.safetensors").unlink()


def test_a_shard_that_links_out_of_the_folder_is_refused(
    sharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (sharded / TWO).rename(elsewhere / TWO)
    (sharded / TWO).symlink_to(elsewhere / TWO)
    with pytest.raises(CorruptInputError, match="a link that leaves the folder"):
        read_folder(sharded)


def test_a_shard_below_a_linked_folder_outside_is_refused(
    sharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (sharded / TWO).rename(elsewhere / TWO)
    (sharded / "sub").symlink_to(elsewhere)
    add_index(sharded, {"a": ONE, "b": ONE, "c": f"sub/{TWO}"})
    with pytest.raises(CorruptInputError, match="a link that leaves the folder"):
        read_folder(sharded)


def test_a_pipe_a_device_or_a_folder_as_a_shard_is_refused_without_waiting(sharded: Path) -> None:
    (sharded / TWO).unlink()
    os.mkfifo(sharded / TWO)
    with pytest.raises(CorruptInputError, match="a pipe"):
        read_folder(sharded)
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to("/dev/zero")
    with pytest.raises(CorruptInputError, match="a device"):
        read_folder(sharded)
    (sharded / TWO).unlink()
    (sharded / TWO).mkdir()
    with pytest.raises(CorruptInputError, match="a folder"):
        read_folder(sharded)


def test_a_pipe_as_an_index_is_refused_without_waiting(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    os.mkfifo(sharded / INDEX)
    with pytest.raises(CorruptInputError, match="a pipe"):
        read_folder(sharded)


def test_a_shard_in_a_sub_folder_is_read(sharded: Path) -> None:
    (sharded / "sub").mkdir()
    (sharded / TWO).rename(sharded / "sub" / TWO)
    add_index(sharded, {"a": ONE, "b": f"./{ONE}", "c": f"sub/{TWO}"})
    assert read_folder(sharded).shards["c"] == f"sub/{TWO}"


def test_a_metadata_json_of_anything_else_is_a_companion(sharded: Path) -> None:
    (sharded / "metadata.json").write_text("{}")
    assert read_folder(sharded).companions == (Path("metadata.json"),)


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        read_folder(tmp_path / "absent")


def test_names_are_sorted_by_the_numbers_in_them() -> None:
    names = ["part10", "part9", "part09", "part2x1", "part", "2", "10", "x00", "x1"]
    assert sorted(names, key=natural_key) == ["2", "10", "part", "part2x1", "part09", "part9", "part10", "x00", "x1"]
