"""metadata.json: its keys, its types, and everything that it may not be."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iteration_folders import describe, write_metadata

from ckpt_tools.formats.iteration.grid import cells_of
from ckpt_tools.formats.iteration.metadata import parse_chunk_key, read_iteration_metadata
from ckpt_tools.tensors.dtypes import BY_NAME
from surgery.errors import CorruptInputError

Document = dict[str, Any]
SOUND = describe({"w": (np.zeros((4, 6), np.float32), (2, 3)), "b": (np.zeros(4, np.float32), (2,))}, 6)


def read(folder: Path, document: object) -> Any:
    write_metadata(folder, document)
    return read_iteration_metadata(folder / "metadata.json")


@settings(deadline=None)
@given(st.text(), st.lists(st.integers(0, 2**62), max_size=4))
def test_a_key_is_what_python_writes_of_a_name_and_an_offset(name: str, offset: list[int]) -> None:
    assert parse_chunk_key(repr((name, tuple(offset)))) == (name, tuple(offset))


@pytest.mark.parametrize(
    "name", ["it's", '"', """it's "both" """, "a, (0,))", "('a', (1,))", "\\", "\n\0\x7f\u202e", "é"]
)
def test_names_may_hold_what_python_quotes(name: str) -> None:
    assert parse_chunk_key(repr((name, (0, 128)))) == (name, (0, 128))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w",
        "('w', (5))",
        "('w', (5, 6,))",
        "('w', (,))",
        "('w', (-1,))",
        "('w', (1.0,))",
        "('w', (0,), 1)",
        "('w', (0,))\n",
        "('w', [0])",
        "('w',(0,))",
        "('w' 'x', (0,))",
        "('w\\q', (0,))",
        "('\\U00110000', (0,))",
        "(w, (0,))",
        "(b'w', (0,))",
        "('w\n', (0,))",
        "(__import__('os').getcwd(), (0,))",
        "(" * 10_000,
        f"('{'w' * 200_000}', (0,))",
        f"('w', ({'0, ' * 50_000}0))",
    ],
)
def test_other_keys_are_refused(text: str) -> None:
    assert parse_chunk_key(text) is None


def test_a_sound_document_is_read(tmp_path: Path) -> None:
    metadata = read(tmp_path, SOUND)
    assert list(metadata.tensors) == ["w", "b"]
    tensor = metadata.tensors["w"]
    assert (tensor.dtype, tensor.shape) == (BY_NAME["fp32"], (4, 6))
    assert tensor.chunks == {(index,): (2, 2) for index in range(6)}
    assert tensor.layout is not None
    assert tensor.layout.parts == (2, 3)
    assert [(one.file, one.rank) for one in metadata.holders["b", (1,)]] == [
        (f"model-000000{rank}-0000006.safetensors", rank) for rank in (1, 3, 5)
    ]


@pytest.mark.parametrize("spelling", ["Float32", "float32"])
def test_types_are_written_in_mindspores_spelling_or_in_lower_case(tmp_path: Path, spelling: str) -> None:
    document = copy.deepcopy(SOUND)
    document["state_dict_metadata"]["w"]["properties"]["dtype"] = spelling
    assert read(tmp_path, document).tensors["w"].dtype.name == "fp32"


def test_what_the_loader_does_not_need_may_be_absent(tmp_path: Path) -> None:
    document = copy.deepcopy(SOUND)
    entry = document["state_dict_metadata"]["w"]
    entry["properties"] = {"dtype": "Float32"}
    del entry["axis_fragmentations"], entry["layout"]
    for holders in document["storage_data"].values():
        for holder in holders:
            del holder["rank_group"]
    metadata = read(tmp_path, document)
    assert metadata.tensors["w"].layout is None
    assert len(metadata.holders["b", (0,)]) == 3


def test_a_scalar_may_have_the_map_of_an_axis_that_is_not_cut(tmp_path: Path) -> None:
    document = describe({"s": (np.array(1, np.float32), ())}, 2)
    document["state_dict_metadata"]["s"]["layout"]["tensor_map"] = [-1]
    assert read(tmp_path, document).tensors["s"].layout.tensor_map == ()


@pytest.mark.parametrize("ranks", [list(range(12)), list(range(6))])
def test_an_interleaved_axis_stands_for_no_devices(tmp_path: Path, ranks: list[int]) -> None:
    document = copy.deepcopy(SOUND)
    layout = document["state_dict_metadata"]["w"]["layout"]
    sound = read(tmp_path, document).tensors["w"].layout
    assert sound is not None
    layout["device_matrix"] = [*layout["device_matrix"], 2]
    layout["tensor_map"] = [
        [axis + 1, 0] if index == 0 else axis + 1 for index, axis in enumerate(layout["tensor_map"])
    ]
    layout |= {"interleaved_parallel": True, "rank_list": ranks}
    found = read(tmp_path, document).tensors["w"].layout
    assert found is not None
    assert (found.parts, cells_of(found)) == (sound.parts, cells_of(sound))


def test_an_interleaved_axis_needs_a_rank_for_each_device(tmp_path: Path) -> None:
    document = copy.deepcopy(SOUND)
    layout = document["state_dict_metadata"]["w"]["layout"]
    layout["device_matrix"] = [*layout["device_matrix"], 2]
    layout |= {"interleaved_parallel": True, "rank_list": [1, 0, *range(2, 12)]}
    with pytest.raises(CorruptInputError, match="12 ranks for the device_matrix"):
        read(tmp_path, document)


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_a_layout_of_more_devices_than_it_lists_costs_nothing(tmp_path: Path, is_interleaved: bool) -> None:
    document = copy.deepcopy(SOUND)
    layout = document["state_dict_metadata"]["w"]["layout"]
    layout |= {"interleaved_parallel": is_interleaved, "device_matrix": [2**60, 1], "rank_list": [0]}
    with pytest.raises(CorruptInputError, match="1 ranks for the device_matrix"):
        read(tmp_path, document)


def test_more_ranks_than_any_cluster_has_are_refused(tmp_path: Path) -> None:
    document = copy.deepcopy(SOUND)
    ranks = list(range(2**20 + 1))
    document["state_dict_metadata"]["w"]["layout"] |= {"device_matrix": [len(ranks)], "rank_list": ranks}
    with pytest.raises(CorruptInputError, match="1,048,577 ranks"):
        read(tmp_path, document)


def test_layouts_of_the_same_ranks_share_them(tmp_path: Path) -> None:
    document = copy.deepcopy(SOUND)
    document["state_dict_metadata"]["x"] = copy.deepcopy(document["state_dict_metadata"]["w"])
    tensors = read(tmp_path, document).tensors
    first, second = tensors["w"].layout, tensors["x"].layout
    assert first is not None
    assert second is not None
    assert first.rank_list is second.rank_list


def put(*path: str | int, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


W = ("state_dict_metadata", "w")
LAYOUT = (*W, "layout")
KEY = "('w', (0,))"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("state_dict_metadata", value=[]), "state_dict_metadata"),
        (put("state_dict_metadata", value={}), "state_dict_metadata"),
        (put("storage_data", value=None), "storage_data"),
        (put(*W, value=3), "'w': expected properties"),
        (put(*W, "properties", value=[]), "a type of MindSpore"),
        (put(*W, "properties", "dtype", value="None"), "the type 'None'"),
        (put(*W, "global_shape", value=[4, -6]), "global_shape"),
        (put(*W, "global_shape", value=[4, True]), "global_shape"),
        (put(*W, "global_shape", value=[2**40, 2**40]), "global_shape"),
        (put(*W, "global_shape", value=[1] * 40), "global_shape"),
        (put(*W, "global_shape", value=[4]), "1 axes"),
        (put(*W, "chunk", value=[]), "global_offset and local_shape"),
        (put(*W, "chunk", 0, "local_shape", value=[2, 2.0]), "global_offset and local_shape"),
        (put(*W, "chunk", 1, "global_offset", value=[0]), "the global_offset [0] twice"),
        (put(*LAYOUT, value="cut"), "device_matrix, tensor_map and rank_list"),
        (put(*LAYOUT, "device_matrix", value=[]), "device_matrix, tensor_map and rank_list"),
        (put(*LAYOUT, "device_matrix", value=[2, 2]), "6 ranks for the device_matrix [2, 2]"),
        (put(*LAYOUT, "rank_list", value=[0, 1, 2, 3, 4, 4]), "a rank for each of its places"),
        (put(*LAYOUT, "tensor_map", value=[0, [0, 1]]), "each of 3 axes once at most"),
        (put(*LAYOUT, "tensor_map", value=[0, 7]), "each of 3 axes once at most"),
        (put(*LAYOUT, "tensor_map", value=[0, -2]), "device_matrix, tensor_map and rank_list"),
        (put(*LAYOUT, "tensor_map", value=[0]), "a tensor_map of 1 axes"),
        (put("storage_data", KEY, value=[]), "file_name, storage_rank and rank_group"),
        (put("storage_data", KEY, value={"file_name": "x", "storage_rank": 0}), "file_name, storage_rank"),
        (put("storage_data", KEY, 0, "storage_rank", value="0"), "file_name, storage_rank and rank_group"),
        (put("storage_data", KEY, 0, "rank_group", value=0), "file_name, storage_rank and rank_group"),
        (put("storage_data", KEY, 0, "file_name", value=None), "file_name, storage_rank and rank_group"),
        (put("storage_data", "(0, 'w')", value=[]), "a key of another form"),
        (put("storage_data", "(\"w\", (0,))", value=SOUND["storage_data"][KEY]), "in two spellings"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_form_is_refused(tmp_path: Path, change: Callable[[Document], None], expected: str) -> None:
    document = copy.deepcopy(SOUND)
    change(document)
    with pytest.raises(CorruptInputError) as caught:
        read(tmp_path, document)
    assert expected in str(caught.value)
    assert str(tmp_path / "metadata.json") in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    document = copy.deepcopy(SOUND)
    document["state_dict_metadata"]["w"]["properties"]["dtype"] = "Float7"
    document["state_dict_metadata"]["b"]["global_shape"] = None
    document["storage_data"]["nonsense"] = []
    with pytest.raises(CorruptInputError) as caught:
        read(tmp_path, document)
    assert len(caught.value.problems) == 3


def test_very_many_problems_are_summed_up(tmp_path: Path) -> None:
    document = {"state_dict_metadata": {str(i): None for i in range(50)}, "storage_data": {}}
    with pytest.raises(CorruptInputError, match="30 problems of this kind"):
        read(tmp_path, document)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": NaN}']
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "metadata.json").write_bytes(data)
    with pytest.raises(CorruptInputError):
        read_iteration_metadata(tmp_path / "metadata.json")


def test_objects_in_odd_places_that_look_like_chunks_or_files_are_no_tensors(tmp_path: Path) -> None:
    chunk = {"global_offset": [0], "local_shape": [4, 6]}
    file = {"file_name": "x", "storage_rank": 0}
    for document in (chunk, file, {"state_dict_metadata": chunk, "storage_data": file}):
        with pytest.raises(CorruptInputError):
            read(tmp_path, document)
    odd = copy.deepcopy(SOUND)
    odd["state_dict_metadata"]["w"] = chunk
    odd["state_dict_metadata"]["b"]["layout"] = file
    with pytest.raises(CorruptInputError):
        read(tmp_path, odd)


def test_a_document_of_impossible_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_bytes(json.dumps(SOUND).encode())
    with path.open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(CorruptInputError, match="at most"):
        read_iteration_metadata(path)
