"""The kinds of folders that are read, and those that are refused."""

import json
from pathlib import Path

import pytest
from folders import INDEX, ONE, TWO, add, add_index, write_two_shards

from ckpt_tools.formats.sharded import read_folder
from surgery.errors import CorruptInputError, PetSurgeryError, UnknownFormatError


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_two_shards(tmp_path)
    return tmp_path


def test_shards_with_an_index_are_one_checkpoint(sharded: Path) -> None:
    add_index(sharded, {"c": TWO, "a": ONE, "b": ONE}, total_size=24, total_parameters=6, by="someone")
    checkpoint = read_folder(sharded)
    assert checkpoint.is_folder
    assert checkpoint.format == "safetensors"
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert checkpoint.shards == {"a": ONE, "b": ONE, "c": TWO}
    assert checkpoint.tensors["c"].read_all().tolist() == [1, 1]
    assert checkpoint.metadata == {"format": "pt", "by": "someone", "total_parameters": "6"}
    assert [Path(source.path).name for source in checkpoint.sources] == [ONE, TWO]
    assert checkpoint.warnings == ()


def test_a_single_file_in_a_folder_is_its_checkpoint(tmp_path: Path) -> None:
    add(tmp_path, "model.safetensors", "a", metadata={"format": "pt"})
    checkpoint = read_folder(tmp_path)
    assert checkpoint.is_folder
    assert checkpoint.shards == {"a": "model.safetensors"}
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.adapter_config is None


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_shards_without_an_index_are_read_in_the_order_of_their_numbers(tmp_path: Path, suffix: str) -> None:
    for number in (10, 9, 2):
        add(tmp_path, f"part{number}{suffix}", f"t{number}")
    checkpoint = read_folder(tmp_path)
    assert checkpoint.format == suffix[1:]
    assert list(checkpoint.tensors) == ["t2", "t9", "t10"]


def test_ckpt_shards_with_the_index_of_mindformers_are_read(tmp_path: Path) -> None:
    shards = {"a": "mindspore_model-00001-of-00002.ckpt", "b": "mindspore_model-00002-of-00002.ckpt"}
    for name, file in shards.items():
        add(tmp_path, file, name)
    add_index(tmp_path, shards, "mindspore_model.ckpt.index.json", total_size=16)
    checkpoint = read_folder(tmp_path)
    assert checkpoint.format == "ckpt"
    assert checkpoint.shards == shards


@pytest.mark.parametrize("flat", [True, False])
def test_a_name_map_of_mindspore_or_mindformers_is_an_index(tmp_path: Path, flat: bool) -> None:
    add(tmp_path, "part0.safetensors", "a")
    add(tmp_path, "part1.safetensors", "b")
    add(tmp_path, "hyper_param.safetensors", "global_step")
    weight_map = {"a": "part0.safetensors", "b": "part1.safetensors"}
    document = weight_map if flat else {"metadata": {"total_size": 16}, "weight_map": weight_map}
    (tmp_path / "param_name_map.json").write_text(json.dumps(document))
    checkpoint = read_folder(tmp_path)
    assert checkpoint.shards == {**weight_map, "global_step": "hyper_param.safetensors"}
    assert checkpoint.warnings == ()
    assert checkpoint.companions == ()


def test_an_index_counts_more_than_the_name_map_that_mindformers_leaves_beside_it(sharded: Path) -> None:
    (sharded / "param_name_map.json").write_text(json.dumps({"renamed": ONE}))
    assert list(read_folder(sharded).tensors) == ["a", "b", "c"]


def test_the_index_of_torch_shards_is_no_second_index(sharded: Path) -> None:
    add_index(sharded, {"a": "pytorch_model-00001-of-00002.bin"}, "pytorch_model.bin.index.json")
    checkpoint = read_folder(sharded)
    assert len(checkpoint.tensors) == 3
    assert checkpoint.companions == ()


def test_a_peft_folder_has_its_configuration(tmp_path: Path) -> None:
    add(tmp_path, "adapter_model.safetensors", "a")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "README.md").write_text("")
    checkpoint = read_folder(tmp_path)
    assert checkpoint.adapter_config == tmp_path / "adapter_config.json"
    assert checkpoint.companions == (Path("README.md"),)


def test_two_indexes_are_refused_unless_one_is_given(sharded: Path) -> None:
    add_index(sharded, {"a": ONE}, "other.index.json")
    with pytest.raises(UnknownFormatError, match=r"other\.index\.json"):
        read_folder(sharded)
    assert len(read_folder(sharded, index_file=INDEX).tensors) == 3


def test_two_formats_in_one_folder_are_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    add(sharded, "old.ckpt", "z")
    with pytest.raises(UnknownFormatError, match="several kinds"):
        read_folder(sharded)


@pytest.mark.parametrize("has_index", [True, False])
def test_a_model_and_an_adapter_in_one_folder_are_refused(sharded: Path, has_index: bool) -> None:
    add(sharded, "adapter_model.safetensors", "lora")
    if not has_index:
        (sharded / INDEX).unlink()
    with pytest.raises(UnknownFormatError, match="several kinds"):
        read_folder(sharded)


def refusal(folder: Path) -> str:
    with pytest.raises(UnknownFormatError) as caught:
        read_folder(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "consolidated.00.pth"])
def test_a_folder_of_pickles_is_refused_with_the_way_to_convert_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "save_file" in refusal(tmp_path)


def test_rank_folders_are_refused_as_slices(tmp_path: Path) -> None:
    add(tmp_path, "rank_0/net-1_1.safetensors", "a")
    add(tmp_path, "rank_1/net-1_1.safetensors", "a")
    assert "strategy" in refusal(tmp_path)


def test_checkpoint_2_is_refused_at_either_level(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    iteration = tmp_path / "iteration_00000001"
    add(iteration, "model-0000000-0000001.safetensors", "a")
    (iteration / "metadata.json").write_text('{"state_dict_metadata": {}}')
    assert "Checkpoint 2.0" in refusal(tmp_path)
    assert "Checkpoint 2.0" in refusal(iteration)


def test_a_folder_without_weights_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    assert "an empty folder" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    assert "config.json, sub/" in refusal(tmp_path)


def test_a_corrupt_shard_is_reported_by_its_path(sharded: Path) -> None:
    (sharded / TWO).write_bytes(b"")
    with pytest.raises(PetSurgeryError, match=TWO):
        read_folder(sharded)


def test_files_that_have_many_tensors_in_common_are_told_in_a_line(tmp_path: Path) -> None:
    names = [f"layer.{number}.weight" for number in range(30)]
    for step in (50, 100):
        add(tmp_path, f"llama-1_{step}.ckpt", *names)
    with pytest.raises(CorruptInputError) as caught:
        read_folder(tmp_path)
    (problem,) = caught.value.problems
    assert problem.where.endswith("tensor 'layer.0.weight' and 29 more")
    assert problem.found == "it in llama-1_50.ckpt and in llama-1_100.ckpt"
