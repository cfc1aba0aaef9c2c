"""Strategies are recognised by what they hold, and everything else is refused by its name, with what to do."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from ckpt_bytes import field, floats, value
from hostile import small_file
from numpy import zeros
from strategy_bytes import dims, number, strategy_bytes, strategy_item, strategy_json
from strategy_cases import refusal

from ckpt_tools.layout import Layout, Strategy, read_strategy
from ckpt_tools.layout.strategy_json import looks_like_json
from surgery.errors import CorruptInputError, InputMissingError, UnknownFormatError

LAYOUTS = {"model.w": Layout((2, 4), ((0,), ())), "model.a-b": Layout((8,), ((0,),))}

GROUPS = field(1, field(1, b"1-7630632346") + field(2, dims([0, 1]))) + field(2, dims([0, 2]))

FOREIGN = {
    "weights": (floats("model.w", 3), "the weights, not their strategy"),
    "a scalar": (value("epoch", [], "Int32", bytes(4)), "the weights, not their strategy"),
    "weights of 123 bytes": (value("w" * 50, [14], "Float32", bytes(56)), "the weights, not their strategy"),
    "weights that are cut": (floats("model.w", 300)[:-9], "the weights, not their strategy"),
    "safetensors": (small_file({"model.w": zeros((3, 2))}), "the weights, not their strategy"),
    "an encrypted ckpt": (b"\xd8\x5e\x3a\x7f" + bytes(200), "MindSpore encrypted"),
    "groups": (GROUPS, "communication groups"),
    "a pickle": (pickle.dumps({"w": 1}), "a pickle of torch or Python"),
    "zeros": (bytes(500), "zeros|unknown bytes 00 00"),
    "words": (b"strategy: {}\n", "73 74 72 61"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer"),
    "an index": (b'{"metadata": {}, "weight_map": {"w": "a.safetensors"}}', "the index of a sharded checkpoint"),
    "a rank table": (b'{"version": "1.0", "server_list": [], "rank_list": []}', "a rank table of HCCL"),
    "metadata": (b'{"state_dict_metadata": {}, "storage_data": {}}', "the metadata of a Checkpoint 2.0"),
    "another object": (b"{}", "a JSON text without parallel_layout_item"),
    "a list": (b'["parallel_layout_item"]', "a JSON text without parallel_layout_item"),
}


def safetensors_of_header_length(low_byte: int) -> bytes:
    """A file whose header's length begins with this byte, as a strategy may begin too."""
    name = "w"
    while (data := small_file({name: zeros((1,))}))[0] != low_byte:
        name += "w"
    return data


@pytest.mark.parametrize("name", ["strategy.ckpt", "strategy.json", "strategy", "model.safetensors", "x.txt"])
@pytest.mark.parametrize("data", [strategy_bytes(LAYOUTS), strategy_json(LAYOUTS)], ids=["protobuf", "json"])
def test_a_strategy_is_recognised_whatever_its_name_is(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert read_strategy(str(path)) == Strategy(path, (LAYOUTS,), 8)
    assert path.read_bytes() == data


@pytest.mark.parametrize("name", ["x.ckpt", "x.json", "x"])
@pytest.mark.parametrize(("data", "says"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_strategy_is_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    error = refusal(tmp_path / name, data)
    assert isinstance(error, UnknownFormatError)
    assert re.search(says, str(error))
    assert "save_param_strategy_file" in str(error)


@pytest.mark.parametrize("low_byte", [0x08, 0x12, 0x1A])
def test_safetensors_are_told_apart_whatever_the_length_of_their_header(tmp_path: Path, low_byte: int) -> None:
    assert "the weights" in str(refusal(tmp_path / "x.ckpt", safetensors_of_header_length(low_byte)))


def test_a_ckpt_that_begins_like_json_is_none() -> None:
    data = value("w" * 50, [14], "Float32", bytes(56))
    assert data[:2] == b"\n{"
    assert not looks_like_json(data)
    assert looks_like_json(b"\n{")


def test_torch_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "a pickle of torch in a zip archive" in str(refusal(tmp_path / "x"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "an empty file" in str(refusal(tmp_path / "x.ckpt", b""))


@pytest.mark.parametrize(
    "data",
    [
        number(1, 1),
        number(1, 1) + field(2, strategy_item(0)),
        strategy_bytes({}),
        strategy_json({}),
        b'{"current_stage": 1, "parallel_strategy_item": {"op": {"stage": 0}}, "parallel_layout_value_item": {}}',
    ],
)
def test_a_strategy_without_parameters_is_refused(tmp_path: Path, data: bytes) -> None:
    error = refusal(tmp_path / "x.ckpt", data)
    assert "a strategy without the layout of any parameter" in str(error)
    assert "save_param_strategy_file" in str(error)


@pytest.mark.parametrize("name", ["absent.ckpt", "absent/x.ckpt"])
def test_a_path_that_is_not_there_is_missing(tmp_path: Path, name: str) -> None:
    assert isinstance(refusal(tmp_path / name, exit_code=3), InputMissingError)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    for path in (tmp_path / "x", tmp_path):
        with pytest.raises(CorruptInputError, match="a pipe"):
            read_strategy(path)


def test_a_file_beyond_any_strategy_is_refused_unread(tmp_path: Path) -> None:
    for data in (strategy_bytes(LAYOUTS), strategy_json(LAYOUTS)):
        path = tmp_path / "x"
        path.write_bytes(data + b"\n" * 600)
        os.truncate(path, 2**40)
        assert f"{2**40:,} bytes" in str(refusal(path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "an empty folder" in str(refusal(tmp_path))


def test_a_folder_of_rank_folders_is_refused_as_a_checkpoint(tmp_path: Path) -> None:
    for rank in range(3):
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / "x.ckpt").write_bytes(floats("w"))
    error = refusal(tmp_path)
    assert "a checkpoint of rank folders (rank_0/, rank_1/, rank_2/)" in str(error)


def test_a_folder_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(floats("w"))
    (tmp_path / "b.safetensors").write_bytes(small_file({"w": zeros((3,))}))
    assert [problem.found for problem in refusal(tmp_path).problems] == ["the weights, not their strategy"] * 2


def test_weights_among_strategies_are_refused_as_they_may_have_taken_the_place_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(strategy_bytes(LAYOUTS))
    (tmp_path / "b.ckpt").write_bytes(floats("w"))
    (problem,) = refusal(tmp_path).problems
    assert problem.where == str(tmp_path / "b.ckpt")


def test_what_lies_beside_strategies_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "ckpt_strategy_rank_0.ckpt").write_bytes(strategy_bytes(LAYOUTS))
    (tmp_path / "group_info_0.pb").write_bytes(GROUPS)
    (tmp_path / "group_info_1").write_bytes(GROUPS)
    (tmp_path / "notes.txt").write_text("done")
    (tmp_path / "train.log").write_text("")
    (tmp_path / "events.log").write_text('{"a": 1}\n{"b": 2}\n')
    (tmp_path / "graph.PB").write_bytes(b"\x42\x01\x05")
    (tmp_path / ".hidden.ckpt").write_bytes(b"\x08")
    (tmp_path / "hccl_8p.json").write_bytes(FOREIGN["a rank table"][0])
    (tmp_path / "rank_0").mkdir()
    shutil.copy(tmp_path / "notes.txt", tmp_path / "rank_0" / "strategy.ckpt")
    assert read_strategy(tmp_path) == Strategy(tmp_path, (LAYOUTS,), 8)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("b.ckpt", b"", "an empty file"),
        ("b.ckpt", strategy_bytes(LAYOUTS)[:-3], "cut short"),
        ("b.txt", strategy_bytes(LAYOUTS)[:-3], "cut short"),
        ("b.json", strategy_json(LAYOUTS)[:-3], "broken JSON"),
        ("b.json", json.dumps({"parallel_strategy_item": {}}).encode(), "without the layout of any parameter"),
        ("b.ckpt", b"\xff\xff words", "ff ff 20"),
        ("b", b"words", "unknown bytes"),
    ],
)
def test_what_may_be_a_spoilt_strategy_is_not_passed_over(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / "a.ckpt").write_bytes(strategy_bytes(LAYOUTS))
    (tmp_path / name).write_bytes(data)
    error = refusal(tmp_path)
    assert says in str(error)
    assert {problem.where.split(", ")[0] for problem in error.problems} == {str(tmp_path / name)}


def test_the_problems_of_all_files_of_a_folder_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(strategy_bytes(LAYOUTS)[:-3])
    (tmp_path / "b.json").write_bytes(b"{")
    (tmp_path / "c.ckpt").write_bytes(floats("w"))
    assert len(refusal(tmp_path).problems) == 3


def test_a_broken_link_in_a_folder_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").symlink_to("absent")
    refusal(tmp_path, exit_code=3)
