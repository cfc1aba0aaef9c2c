"""What is laid out as an iteration: its files, its metadata, and that our reader finds the same slices in it."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iteration_folders import cell_region, cells, joined, write_file
from soak import examples

from ckpt_tools.formats import (
    MODEL,
    OPTIMIZER,
    IterationLayout,
    RankSlice,
    common_json,
    iteration_folder_name,
    layout_iteration,
    read_iteration,
    tracker_text,
)
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import Region
from surgery.errors import MismatchError, UsageError

FP32 = BY_NAME["fp32"]
Ranks = list[list[RankSlice]]


def slice_of(region: Region, shape: tuple[int, ...] = (4, 6), name: str = "w", kind: str = MODEL) -> RankSlice:
    return RankSlice(name, FP32, shape, region, kind)


LEFT, RIGHT = ((0, 4), (0, 3)), ((0, 4), (3, 6))


def document(layout: IterationLayout) -> Any:
    return json.loads(layout.metadata)


def write(folder: Path, arrays: dict[str, np.ndarray], layout: IterationLayout) -> None:
    for file in layout.files:
        slices = {one.name: arrays[one.name][tuple(slice(*axis) for axis in one.region)] for one in file.slices}
        write_file(folder / file.name, slices)
    (folder / "metadata.json").write_bytes(layout.metadata)
    (folder / "common.json").write_bytes(common_json({}))


@st.composite
def ranks_and_arrays(draw: st.DrawFn) -> tuple[Ranks, dict[str, np.ndarray]]:
    """Tensors cut into random grids, each cell held by one rank at least and others at random; ranks in any order."""
    count = draw(st.integers(1, 6))
    ranks: Ranks = [[] for _ in range(count)]
    arrays = {}
    for name in draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4, unique=True)):
        if name == "__metadata__":
            continue
        parts = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
        if math.prod(parts) > count:
            parts = (1,) * len(parts)
        shape = tuple(part * draw(st.integers(1, 3)) for part in parts)
        arrays[name] = np.arange(1, math.prod(shape) + 1, dtype=np.float32).reshape(shape)
        kind = draw(st.sampled_from([MODEL, OPTIMIZER]))
        grid = cells(parts)
        held = [*grid, *draw(st.lists(st.sampled_from(grid), max_size=count - len(grid)))]
        holders = draw(st.permutations(range(count)))
        for rank, cell in zip(holders, held, strict=False):
            ranks[rank].append(RankSlice(name, FP32, shape, cell_region(shape, parts, cell), kind))
    return ranks, arrays


@settings(max_examples=examples(60), deadline=None)
@given(ranks_and_arrays(), st.booleans(), st.sampled_from([None, "llama", "a-model-0000001"]))
def test_what_is_laid_out_is_read_back(case, keep_replicas, prefix) -> None:  # type: ignore[no-untyped-def]
    ranks, arrays = case
    if not arrays:
        return
    layout = layout_iteration(ranks, prefix, keep_replicas)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arrays, layout)
        iteration = read_iteration(folder)
        assert iteration.warnings == ()
        assert iteration.prefix == prefix
        assert set(iteration.tensors) == set(arrays)
        for name, array in arrays.items():
            tensor = iteration.tensors[name]
            assert np.array_equal(joined(tensor), array)
            held = sum(one.name == name for group in ranks for one in group)
            assert len(tensor.chunks) + len(tensor.replicas) == (held if keep_replicas else len(tensor.chunks))
            assert tensor.kind == next(one.kind for group in ranks for one in group if one.name == name)
            for chunk in tensor.chunks:
                assert any((one.name, one.region) == (name, chunk.region) for one in ranks[chunk.rank])


def test_files_are_named_and_numbered_as_mindformers_does() -> None:
    state = slice_of(((0, 4), (0, 6)), name="adam_m.w", kind=OPTIMIZER)
    layout = layout_iteration([[slice_of(LEFT)], [slice_of(RIGHT), state]], "llama", keep_replicas=True)
    assert [(file.name, file.rank) for file in layout.files] == [
        ("llama-model-0000000-0000002.safetensors", 0),
        ("llama-model-0000001-0000002.safetensors", 1),
        ("llama-opt-0000001-0000002.safetensors", 1),
    ]
    without = layout_iteration([[slice_of(LEFT)], [slice_of(RIGHT), state]])
    assert [file.name for file in without.files] == [
        "model-0000000-0000002.safetensors",
        "model-0000001-0000002.safetensors",
        "opt-0000000-0000001.safetensors",
    ]


def test_without_replicas_the_ranks_share_the_bytes() -> None:
    whole = ((0, 4), (0, 6))
    ranks = [[slice_of(whole, name=name) for name in "abcdefgh"] for _ in range(4)]
    layout = layout_iteration(ranks)
    assert [len(file.slices) for file in layout.files] == [2, 2, 2, 2]
    stored = document(layout)["storage_data"]
    assert all(len(entries) == 1 and entries[0]["rank_group"] == [0, 1, 2, 3] for entries in stored.values())


def test_the_metadata_says_what_mindformers_needs() -> None:
    layout = layout_iteration([[slice_of(RIGHT)], [slice_of(LEFT)], [slice_of(RIGHT)], [slice_of(LEFT)]])
    assert document(layout) == {
        "state_dict_metadata": {
            "w": {
                "properties": {
                    "dtype": "Float32",
                    "replica_id": [0, 0, 1, 1],
                    "allow_shape_mismatch": False,
                    "allow_to_save": True,
                },
                "global_shape": [4, 6],
                "axis_fragmentations": [1, 2],
                "layout": {
                    "device_matrix": [2, 2],
                    "tensor_map": [-1, 0],
                    "interleaved_parallel": False,
                    "alias_name": ["axis0", "axis1"],
                    "rank_list": [1, 0, 3, 2],
                },
                "chunk": [
                    {"global_offset": [1], "local_shape": [4, 3]},
                    {"global_offset": [0], "local_shape": [4, 3]},
                ],
            }
        },
        "storage_data": {
            "('w', (1,))": [
                {"file_name": "model-0000000-0000002.safetensors", "storage_rank": 0, "rank_group": [0, 2]}
            ],
            "('w', (0,))": [
                {"file_name": "model-0000001-0000002.safetensors", "storage_rank": 1, "rank_group": [1, 3]}
            ],
        },
    }


def test_the_same_slices_give_the_same_bytes() -> None:
    ranks = [[slice_of(LEFT)], [slice_of(RIGHT)]]
    assert layout_iteration(ranks) == layout_iteration([list(group) for group in ranks])


def test_types_have_mindspores_names() -> None:
    for dtype in (BY_NAME["bf16"], BY_NAME["int4"], BY_NAME["fp8_e4m3"], BY_NAME["bool"]):
        layout = layout_iteration([[RankSlice("w", dtype, (2,), ((0, 2),))]])
        assert document(layout)["state_dict_metadata"]["w"]["properties"]["dtype"] == dtype.mindspore


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([[slice_of(LEFT)], [slice_of(LEFT)]], "slices that cover it once"),
        ([[slice_of(LEFT)], [slice_of(((0, 4), (2, 6)))]], "slices that cover it once"),
        ([[slice_of(((0, 4), (0, 2)))], [slice_of(((0, 4), (2, 6)))]], "equal slices"),
        ([[slice_of(LEFT), slice_of(RIGHT)]], "several slices on one rank"),
        ([[slice_of(LEFT)], [slice_of(RIGHT, (4, 7))]], "fp32 [4, 7] on rank 1"),
        ([[slice_of(LEFT)], [slice_of(RIGHT, kind=OPTIMIZER)]], "opt fp32 [4, 6] on rank 1"),
        ([[slice_of(LEFT)], [RankSlice("w", BY_NAME["bf16"], (4, 6), RIGHT)]], "bf16 [4, 6] on rank 1"),
        ([[RankSlice("w", BY_NAME["fp8_e8m0"], (2,), ((0, 2),))]], "which MindSpore lacks"),
        ([[slice_of(((0, 4), (0, 6)), name="\ud800")]], "half a surrogate pair"),
    ],
)
def test_what_the_format_cannot_say_is_refused(ranks: Ranks, expected: str) -> None:
    with pytest.raises(MismatchError) as caught:
        layout_iteration(ranks)
    assert expected in str(caught.value)


def test_all_tensors_that_cannot_be_laid_out_are_told_at_once() -> None:
    ranks = [[slice_of(LEFT, name=str(number)) for number in range(30)]]
    with pytest.raises(MismatchError) as caught:
        layout_iteration(ranks)
    assert len(caught.value.problems) == 21
    assert "10 tensors of this kind" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "a/b", "\0"])
def test_a_prefix_that_is_no_part_of_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError):
        layout_iteration([[slice_of(((0, 4), (0, 6)))]], prefix)


def test_common_json_has_all_counters_in_mindformers_order_and_keeps_others() -> None:
    text = common_json({"later": 1, "global_step": 7, "loss_scale": None})
    assert list(json.loads(text).items()) == [
        ("epoch_num", None), ("step_num", None), ("global_step", 7), ("loss_scale", None),
        ("global_batch_size", None), ("ckpt_status", None), ("later", 1),
    ]  # fmt: skip


def test_the_tracker_and_the_folder_carry_the_number() -> None:
    assert tracker_text(12) == b"12"
    assert iteration_folder_name(12) == "iteration_00000012"
    assert iteration_folder_name(123456789) == "iteration_123456789"


def test_zero_size_tensors_and_scalars_are_laid_out() -> None:
    ranks = [
        [slice_of(((0, 0), (0, 2)), (0, 4)), slice_of((), (), "s")],
        [slice_of(((0, 0), (2, 4)), (0, 4)), slice_of((), (), "s")],
    ]
    described = document(layout_iteration(ranks))["state_dict_metadata"]
    assert described["w"]["axis_fragmentations"] == [1, 2]
    assert described["s"]["layout"]["device_matrix"] == [2]
