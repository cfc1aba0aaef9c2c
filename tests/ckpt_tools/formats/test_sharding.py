"""Planning shards and their index."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import materialise
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.formats import layout_ckpt, layout_safetensors, read_folder
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.formats.sharding import index_json, index_name, plan_shards
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant


def tensors_of(*sizes: int) -> list[NamedTensor]:
    arrays = [np.full(size, size, np.uint8) for size in sizes]
    return [(f"t{i}", Constant(array, dtype_of(array))) for i, array in enumerate(arrays)]


def planned(sizes: list[int], limit: int, extension: str = ".safetensors") -> list[tuple[str, list[str]]]:
    return [(file, [name for name, _ in group]) for file, group in plan_shards(tensors_of(*sizes), limit, extension)]


def test_shards_are_filled_in_order_up_to_the_limit() -> None:
    assert planned([6, 6, 2, 6, 2, 2], 10) == [
        ("model-00001-of-00003.safetensors", ["t0"]),
        ("model-00002-of-00003.safetensors", ["t1", "t2"]),
        ("model-00003-of-00003.safetensors", ["t3", "t4", "t5"]),
    ]


def test_a_tensor_over_the_limit_has_a_file_of_its_own() -> None:
    assert [names for _, names in planned([20, 1, 20, 20], 10)] == [["t0"], ["t1"], ["t2"], ["t3"]]


@pytest.mark.parametrize(
    ("extension", "name"), [(".safetensors", "model.safetensors"), (".ckpt", "mindspore_model.ckpt")]
)
def test_what_fits_in_one_file_has_no_number(extension: str, name: str) -> None:
    assert planned([1, 2], 3, extension) == [(name, ["t0", "t1"])]
    assert planned([], 3, extension) == [(name, [])]
    assert index_name(extension) == f"{name}.index.json"


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_every_tensor_is_in_one_shard_in_order_and_no_shard_could_take_the_next_tensor(
    sizes: list[int], limit: int
) -> None:
    groups = [group for _, group in plan_shards(tensors_of(*sizes), limit, ".ckpt")]
    assert [name for group in groups for name, _ in group] == [f"t{i}" for i in range(len(sizes))]
    totals = [sum(tensor.nbytes for _, tensor in group) for group in groups]
    assert all(total <= limit or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    assert all(total + following[0][1].nbytes > limit for total, following in zip(totals[:-1], groups[1:], strict=True))


def test_the_index_counts_bytes_and_is_sorted_and_written_as_hugging_face_does() -> None:
    shards = plan_shards(tensors_of(*range(11)), 30, ".safetensors")
    text = index_json(shards, {"zeta": "z", "format": "pt"}).decode()
    index = json.loads(text)
    assert index["metadata"] == {"total_size": 55, "zeta": "z", "format": "pt"}
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert index["weight_map"]["t10"] == "model-00002-of-00002.safetensors"
    assert text == json.dumps(index, indent=2, sort_keys=True) + "\n"


def test_a_count_of_parameters_is_counted_again() -> None:
    shards = plan_shards(tensors_of(3, 4), 3, ".safetensors")
    assert json.loads(index_json(shards, {"total_parameters": "1", "total_size": "x"}))["metadata"] == {
        "total_parameters": 7,
        "total_size": 7,
    }


@pytest.mark.parametrize("extension", [".safetensors", ".ckpt"])
def test_planned_shards_and_their_index_read_back(tmp_path: Path, extension: str) -> None:
    shards = plan_shards(tensors_of(3, 4, 5), 7, extension)
    for file, group in shards:
        layout = layout_ckpt(group) if extension == ".ckpt" else layout_safetensors(group, {"format": "pt"})
        (tmp_path / file).write_bytes(materialise(layout, group))
    (tmp_path / index_name(extension)).write_bytes(index_json(shards, {}))
    checkpoint = read_folder(tmp_path)
    assert list(checkpoint.tensors) == ["t0", "t1", "t2"]
    assert checkpoint.shards == {name: file for file, group in shards for name, _ in group}
    assert checkpoint.warnings == ()
