"""Iterations of Checkpoint 2.0 exchanged with real MindFormers, in both directions.

There is one process and one device: where MindFormers asks the distributed backend for the rank and the number of
ranks, it is told those of the rank that is played, and where it asks MindSpore for the layouts of a network that was
compiled for many devices, it is given them. Slices, files and metadata are made and read by its own functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import materialise
from iteration_folders import joined, write_file
from mindformers.checkpoint import checkpoint as mf_checkpoint
from mindformers.checkpoint import sharded_tensor
from mindformers_iterations import (
    LAYOUTS,
    PLACED,
    RANKS,
    WEIGHTS,
    Network,
    Play,
    cut,
    player,
    region_of,
    reshard_of,
    save,
    saved_arrays,
    saved_layouts,
)
from mindspore import nn
from mindspore.parallel import Layout

from ckpt_tools.formats import (
    COMMON_FILE,
    METADATA_FILE,
    MODEL,
    OPTIMIZER,
    TRACKER_FILE,
    RankSlice,
    common_json,
    iteration_folder_name,
    layout_iteration,
    layout_safetensors,
    read_iteration,
    read_safetensors,
    tracker_text,
)
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.lazy import Region, full_region
from ckpt_tools.tensors.views import Constant

Slices = list[list[RankSlice]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    return player(monkeypatch)


def write(folder: Path, arrays: Mapping[str, np.ndarray], slices: Slices, keep_replicas: bool = False) -> Path:
    """An iteration of ours, written as a caller would."""
    layout = layout_iteration(slices, "x", keep_replicas)
    target = folder / iteration_folder_name(3)
    target.mkdir(parents=True)
    for file in layout.files:
        named = [(one.name, Constant(np.array(cut(arrays[one.name], one.region)), one.dtype)) for one in file.slices]
        (target / file.name).write_bytes(materialise(layout_safetensors(named, {"format": "ms"}), named))
    (target / METADATA_FILE).write_bytes(layout.metadata)
    (target / COMMON_FILE).write_bytes(common_json({"global_step": 3}))
    (folder / TRACKER_FILE).write_bytes(tracker_text(3))
    return target


def slices_of(arrays: Mapping[str, np.ndarray], layouts: Mapping[str, Layout], ranks: int) -> Slices:
    kinds = {name: OPTIMIZER if name.startswith("adam") else MODEL for name in arrays}
    return [
        [
            RankSlice(name, dtype_of(array), array.shape, region_of(layouts[name], rank, array.shape), kinds[name])
            for name, array in arrays.items()
        ]
        for rank in range(ranks)
    ]


def test_what_a_single_rank_saves_is_read_whole(tmp_path: Path) -> None:
    arrays = {**WEIGHTS, "scalar": np.array(2.5, np.float32), "half": np.arange(3).astype(BY_NAME["bf16"].numpy)}
    network = Network(arrays)
    optimizer = nn.AdamWeightDecay(network.trainable_params())
    common = mf_checkpoint.CommonInfo(epoch_num=1, global_step=7)
    mf_checkpoint.save_checkpoint(7, network, optimizer, common_info=common, save_checkpoint_path=str(tmp_path))
    assert not (tmp_path / "iteration_00000007" / METADATA_FILE).exists()
    iteration = read_iteration(tmp_path)
    assert iteration.path == tmp_path / "iteration_00000007"
    assert iteration.number == 7
    assert iteration.common == common.__dict__
    assert iteration.prefix is None
    assert iteration.files == ("model-0000000-0000001.safetensors", "opt-0000000-0000001.safetensors")
    assert iteration.tensors["adam_m.cut.last"].kind == OPTIMIZER
    assert iteration.warnings == ()
    for name, array in arrays.items():
        tensor = iteration.tensors[name]
        assert (tensor.kind, tensor.shape, tensor.dtype) == (MODEL, array.shape, dtype_of(array))
        assert np.array_equal(joined(tensor), array)


@pytest.mark.parametrize("remove_redundancy", [False, True])
def test_what_several_ranks_save_is_read_with_its_values(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch, remove_redundancy: bool
) -> None:
    save(tmp_path, play, monkeypatch, remove_redundancy)
    iteration = read_iteration(tmp_path)
    assert iteration.number == 12
    assert iteration.prefix == "llama"
    for name, array in saved_arrays(remove_redundancy).items():
        tensor = iteration.tensors[name]
        assert tensor.kind == (OPTIMIZER if name.startswith("adam") else MODEL)
        assert np.array_equal(joined(tensor), array)
    assert len(iteration.tensors["cut.last"].replicas) == (0 if remove_redundancy else 2)


def test_the_offset_that_mindformers_writes_is_one_flat_index_of_a_slice(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, play, monkeypatch)
    document = json.loads((tmp_path / "iteration_00000012" / METADATA_FILE).read_text())
    chunks = document["state_dict_metadata"]["cut.both"]["chunk"]
    assert chunks == [{"global_offset": [index], "local_shape": [2, 4]} for index in range(4)]
    # Rank 1 has the first axis' third part: its cuts are by mp, then by dp.
    assert [chunk["global_offset"] for chunk in document["state_dict_metadata"]["cut.nested"]["chunk"]] == [
        [0], [2], [1], [3]
    ]  # fmt: skip


def test_tensors_that_the_strategy_lacks_are_in_the_files_and_not_in_the_metadata(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, play, monkeypatch)
    iteration = read_iteration(tmp_path)
    assert set(iteration.unlisted) == {"learning_rate", "global_step"}
    assert [chunk.rank for chunk in iteration.unlisted["learning_rate"]] == list(range(RANKS))
    assert any("2 tensors of the files are not in it" in warning for warning in iteration.warnings)


def test_pipeline_stages_and_a_tensor_that_both_hold_are_read(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [Layout((2,), ("dp",), [0, 1]), Layout((2,), ("dp",), [2, 3])]
    held = [("early", "tied"), ("late", "tied")]
    names = ("early", "late", "tied")
    arrays = {name: np.arange(12, dtype=np.float32).reshape(4, 3) + index for index, name in enumerate(names)}
    infos = {rank: {name: [stages[rank // 2]("dp", "None"), "Float32", [4, 3]] for name in held[rank // 2]}
             for rank in range(4)}  # fmt: skip
    monkeypatch.setattr(sharded_tensor, "get_strategy_metadata", lambda network: infos)
    monkeypatch.setattr(mf_checkpoint, "barrier_world", lambda *_: None)
    for rank in range(4):
        play(rank, 4)
        # As in a real run, a rank's network has the parameters of all stages, and files only those of its own.
        network = Network({name: array[:2] if rank % 2 == 0 else array[2:] for name, array in arrays.items()})
        mf_checkpoint.save_checkpoint(
            1,
            network,
            common_info=mf_checkpoint.CommonInfo(),
            save_checkpoint_path=str(tmp_path),
            sharded_tensor_metas=sharded_tensor.get_all_sharded_tensor(network),
        )
        target = tmp_path / "iteration_00000001" / f"model-{rank:07d}-0000004.safetensors"
        kept = {name: tensor.read_all() for name, tensor in read_safetensors(target).tensors.items()
                if name in held[rank // 2]}  # fmt: skip
        target.unlink()
        write_file(target, kept)
    iteration = read_iteration(tmp_path)
    assert [chunk.rank for chunk in iteration.tensors["late"].chunks] == [2, 3]
    assert [chunk.rank for chunk in iteration.tensors["tied"].replicas] == [2, 3]
    for name, array in arrays.items():
        assert np.array_equal(joined(iteration.tensors[name]), array)


@pytest.mark.parametrize("keep_replicas", [False, True])
def test_mindformers_loads_what_is_written_into_a_whole_network(tmp_path: Path, keep_replicas: bool) -> None:
    arrays = {**WEIGHTS, "scalar": np.array(2.5, np.float32)}
    arrays |= {f"adam_m.{name}": array + 1 for name, array in WEIGHTS.items()}
    layouts = {name: LAYOUTS.get(name.removeprefix("adam_m."), PLACED()) for name in arrays}
    write(tmp_path, arrays, slices_of(arrays, layouts, RANKS), keep_replicas)
    network = Network({name: np.zeros_like(arrays[name]) for name in (*WEIGHTS, "scalar")})
    optimizer = nn.AdamWeightDecay(network.trainable_params())
    mf_checkpoint.load_checkpoint(str(tmp_path), network, optimizer)
    for name in (*WEIGHTS, "scalar"):
        assert np.array_equal(network.parameters_dict()[name].asnumpy(), arrays[name])
    loaded = optimizer.parameters_dict()
    for name in WEIGHTS:
        assert np.array_equal(loaded[f"adam_m.{name}"].asnumpy(), arrays[f"adam_m.{name}"])
    assert int(loaded["global_step"].asnumpy().item()) == 3


@pytest.mark.parametrize("keep_replicas", [False, True])
@pytest.mark.parametrize(
    ("matrix", "both", "nested"),
    [
        ((1,), ("None", "None"), ("None", "None")),
        ((2,), ("None", "x"), ("x", "None")),
        ((2, 2), ("y", "x"), (("x", "y"), "None")),
        ((4, 2), ("y", "x"), ("y", "x")),
    ],
)
def test_mindformers_reshards_what_is_written_onto_other_ranks(
    tmp_path: Path,
    play: Play,
    keep_replicas: bool,
    matrix: tuple[int, ...],
    both: tuple[Any, ...],
    nested: tuple[Any, ...],
) -> None:
    write(tmp_path, WEIGHTS, slices_of(WEIGHTS, LAYOUTS, RANKS), keep_replicas)
    target = Layout(matrix, tuple("yx"[-len(matrix) :]))
    layouts = {"cut.both": target(*both), "cut.nested": target(*nested)}
    ranks = int(np.prod(matrix))
    for rank in range(ranks):
        play(rank, ranks)
        loaded = reshard_of(tmp_path / iteration_folder_name(3), layouts, rank, ranks)
        for name, layout in layouts.items():
            expected = cut(WEIGHTS[name], region_of(layout, rank, WEIGHTS[name].shape))
            assert np.array_equal(loaded[name].asnumpy(), expected)


def test_ranks_in_any_order_and_unequal_replicas_load_as_well(tmp_path: Path) -> None:
    """What a strategy of MindSpore would not say: the first half is on rank 2, the other on 0 and 1; three ranks."""
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    halves: list[Region] = [((2, 4), (0, 3)), ((2, 4), (0, 3)), ((0, 2), (0, 3))]
    slices = [[RankSlice("w", BY_NAME["fp32"], (4, 3), region)] for region in halves]
    write(tmp_path, {"w": array}, slices)
    network = Network({"w": np.zeros_like(array)})
    mf_checkpoint.load_checkpoint(str(tmp_path), network)
    assert np.array_equal(network.p0.asnumpy(), array)


def test_bf16_and_a_single_rank_load_as_well(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).astype(BY_NAME["bf16"].numpy)
    slices = [[RankSlice("w", BY_NAME["bf16"], (2, 3), full_region((2, 3)))]]
    write(tmp_path, {"w": array}, slices)
    network = Network({"w": np.zeros_like(array)})
    mf_checkpoint.load_checkpoint(str(tmp_path), network)
    assert np.array_equal(network.p0.float().asnumpy(), array.astype(np.float32))


@pytest.mark.parametrize("remove_redundancy", [False, True])
def test_the_metadata_says_of_chunks_and_files_what_mindformers_says(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch, remove_redundancy: bool
) -> None:
    save(tmp_path, play, monkeypatch, remove_redundancy)
    theirs = json.loads((tmp_path / "iteration_00000012" / METADATA_FILE).read_text())
    arrays = saved_arrays(remove_redundancy)
    slices = slices_of(arrays, saved_layouts(arrays), RANKS)
    ours = json.loads(layout_iteration(slices, "llama", not remove_redundancy).metadata)
    assert ours["storage_data"].keys() == theirs["storage_data"].keys()
    for name, entry in theirs["state_dict_metadata"].items():
        mine = ours["state_dict_metadata"][name]
        assert list(mine) == list(entry)
        assert list(mine["layout"]) == list(entry["layout"])
        for key in ("global_shape", "axis_fragmentations", "chunk"):
            assert mine[key] == entry[key]
        assert {**mine["properties"], "replica_id": 0} == {**entry["properties"], "replica_id": 0}
    if not remove_redundancy:
        assert ours["storage_data"] == theirs["storage_data"]
    groups = {key: entries[0]["rank_group"] for key, entries in ours["storage_data"].items()}
    assert groups == {key: entries[0]["rank_group"] for key, entries in theirs["storage_data"].items()}
