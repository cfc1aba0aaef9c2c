"""Iterations of MindFormers' Checkpoint 2.0 as sources and targets of transforms."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from iteration_folders import joined, write_file, write_iteration, write_metadata
from merge_cases import random, tree
from rank_folders import assert_same_arrays, read_arrays, read_ranks, slices_of_rank, strategy_of, write_ranks
from soak import examples
from strategy_bytes import strategy_bytes
from transform_cases import ROWS, SOURCE, TARGET, TENSORS, refusal, twice_cut, write_case, write_strategy

from ckpt_tools import transform
from ckpt_tools.formats import MODEL, OPTIMIZER, read_iteration, read_safetensors
from ckpt_tools.layout.model import Layout, Strategy
from surgery.errors import MismatchError

STATES = {f"adam_m.{name}": random(40, *TENSORS[name].shape) for name in ("embedding.weight", "layer.weight")}
SCALARS = {
    "global_step": np.array(7, np.int32),
    "step_num": np.array([9], np.int32),
    "epoch_num": np.array(2, np.int32),
    "loss_scale": np.array([0.5], np.float32),
}
CUT = {"a.weight": (random(1, 4, 6), (2, 1)), "b.weight": (random(2, 4, 6), (1, 2)), "adam_m.b.weight": (
    random(3, 4, 6), (2, 2))}  # fmt: skip
"""Name to a whole tensor, and in how many parts each axis is cut."""


def with_states(strategy: Strategy) -> Strategy:
    """The strategy, which cuts the optimizer's states as their parameters."""
    layouts = strategy.stages[0]
    return strategy_of(layouts | {name: layouts[name.removeprefix("adam_m.")] for name in STATES})


def read_whole(folder: Path) -> dict[str, np.ndarray]:
    """An iteration's tensors, joined by the test's own code."""
    iteration = read_iteration(folder)
    assert not iteration.unlisted
    return {name: joined(tensor) for name, tensor in iteration.tensors.items()}


def whole_of(tensors: dict[str, tuple[np.ndarray, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    return {name: array for name, (array, _) in tensors.items()}


@settings(max_examples=examples(60), deadline=None)
@given(case=twice_cut())
def test_any_ranks_become_an_iteration_of_any_others_and_that_becomes_ranks(
    case: tuple[dict[str, np.ndarray], Strategy, Strategy],
) -> None:
    tensors, before, after = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_ranks(folder / "in", tensors, before)
        src, dst = write_strategy(folder / "src", before), write_strategy(folder / "dst", after)
        transform(source, src_strategy=src, dst_strategy=dst, output=folder / "mid", format="iteration")
        mid = folder / "mid" / "iteration_00000000"
        assert_same_arrays(read_whole(folder / "mid"), tensors)
        written = sum(tensor.nbytes for file in mid.glob("*.safetensors") for tensor in
                      read_safetensors(file).tensors.values())  # fmt: skip
        assert written == sum(array.nbytes for array in tensors.values()), "each slice is written once"
        transform(folder / "mid", dst_strategy=src, output=folder / "out", format="ckpt", check_replicas=True)
        for rank, held in enumerate(read_ranks(folder / "out")):
            assert_same_arrays(held, slices_of_rank(tensors, before, rank))
        transform(mid, output=folder / "whole.ckpt")
        assert_same_arrays(read_arrays(folder / "whole.ckpt"), tensors)


def test_optimizer_states_and_training_scalars_go_there_and_back(tmp_path: Path) -> None:
    tensors = TENSORS | STATES | SCALARS
    write_case(tmp_path, tensors=tensors, source=with_states(SOURCE), target=with_states(TARGET))
    strategies = {"src_strategy": tmp_path / "src.ckpt", "dst_strategy": tmp_path / "dst.ckpt"}
    report = transform(tmp_path / "in", **strategies, output=tmp_path / "mid", format="iteration")
    assert (report.format, report.dst_ranks) == ("safetensors", 2)
    iteration = read_iteration(tmp_path / "mid")
    assert iteration.number == 9
    assert {name for name, tensor in iteration.tensors.items() if tensor.kind == OPTIMIZER} == {*STATES, *SCALARS}
    assert {tensor.kind for tensor in iteration.tensors.values()} == {MODEL, OPTIMIZER}
    assert dict(iteration.common) == {
        "epoch_num": 2, "step_num": 9, "global_step": 7, "loss_scale": 0.5, "global_batch_size": None,
        "ckpt_status": None}  # fmt: skip
    assert (tmp_path / "mid" / "latest_checkpointed_iteration.txt").read_text() == "9"
    assert_same_arrays(read_whole(tmp_path / "mid"), tensors)
    back = {"dst_strategy": tmp_path / "src.ckpt", "output": tmp_path / "out", "format": "ckpt"}
    report = transform(tmp_path / "mid", **back, check_replicas=True)
    assert (report.step, report.src_ranks) == ("9", 2)
    for rank, held in enumerate(read_ranks(tmp_path / "out")):
        assert_same_arrays(held, slices_of_rank(tensors, with_states(SOURCE), rank))


def test_a_pipeline_becomes_an_iteration_and_back(tmp_path: Path) -> None:
    tensors = {f"layers.{number}.weight": random(number, 8, 4) for number in range(2)} | {"tied": random(5, 8, 4)}
    stages = [{name: Layout((2,), ROWS) for name in (f"layers.{number}.weight", "tied")} for number in range(2)]
    pipeline = strategy_of(*stages)
    source = write_ranks(tmp_path / "in", tensors, pipeline)
    stages_path = write_strategy(tmp_path / "pp", pipeline)
    both = {"src_strategy": stages_path, "dst_strategy": stages_path}
    transform(source, **both, output=tmp_path / "mid", format="iteration")
    assert_same_arrays(read_whole(tmp_path / "mid"), tensors)
    transform(tmp_path / "mid", dst_strategy=stages_path, output=tmp_path / "out")
    for rank, held in enumerate(read_ranks(tmp_path / "out")):
        assert_same_arrays(held, slices_of_rank(tensors, pipeline, rank))


def test_without_a_strategy_the_output_has_one_rank(tmp_path: Path) -> None:
    write_iteration(tmp_path / "in" / "iteration_00000012", CUT, 4, common={"global_step": 5, "step_num": 12})
    transform(tmp_path / "in", output=tmp_path / "out", format="iteration")
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == [
        "iteration_00000012/common.json",
        "iteration_00000012/metadata.json",
        "iteration_00000012/model-0000000-0000001.safetensors",
        "iteration_00000012/opt-0000000-0000001.safetensors",
        "latest_checkpointed_iteration.txt",
        "pet-manifest.json",
    ]
    assert_same_arrays(read_whole(tmp_path / "out"), whole_of(CUT))
    common = json.loads((tmp_path / "out" / "iteration_00000012" / "common.json").read_text())
    assert (common["global_step"], common["step_num"], common["epoch_num"]) == (5, 12, None)


@pytest.mark.parametrize(
    ("scalars", "name", "number", "epoch"),
    [
        ({}, "x_rank_{}.ckpt", 0, 0),
        ({}, "x_rank_{}-3_2.ckpt", 0, 3),
        ({"global_step": np.array([7], np.int32)}, "x_rank_{}-3_2.ckpt", 7, 3),
        ({"global_step": np.array(-1, np.int32)}, "x_rank_{}.ckpt", 0, 0),
        ({"step_num": np.array(9, np.int64), "global_step": np.array(7, np.int32)}, "x_rank_{}.ckpt", 9, None),
    ],
)
def test_the_number_and_the_counters_come_from_training_scalars(
    tmp_path: Path, scalars: dict[str, np.ndarray], name: str, number: int, epoch: int | None
) -> None:
    arrays = {"w": np.arange(4, dtype=np.float32)} | scalars
    strategy = strategy_of({"w": Layout((2,), ((0,),))})
    source = write_ranks(tmp_path / "in", arrays, strategy, name.format)
    src = write_strategy(tmp_path / "src", strategy)
    transform(source, src_strategy=src, output=tmp_path / "out", format="iteration")
    iteration = read_iteration(tmp_path / "out")
    assert iteration.number == number
    assert iteration.common["epoch_num"] == epoch
    for counter in ("step_num", "global_step"):
        assert iteration.common[counter] == int(scalars.get(counter, np.array(number)).reshape(()))


def test_step_chooses_the_iteration_by_its_number(tmp_path: Path) -> None:
    for number in (9, 10, 120):
        write_iteration(tmp_path / f"in/iteration_{number:08d}", {"w": (np.full(4, number, np.float32), (2,))}, 2)
    (tmp_path / "in" / "latest_checkpointed_iteration.txt").write_text("10")
    for step, number in ((None, 10), ("9", 9), ("120", 120), ("00000120", 120)):
        report = transform(tmp_path / "in", step=step, output=tmp_path / "out.ckpt", force=True)
        assert report.step == str(number)
        assert read_arrays(tmp_path / "out.ckpt")["w"].tolist() == [number] * 4
    options = {"src_strategy": None, "dst_strategy": None}
    assert "iteration_00000120, iteration_00000010" in str(refusal(tmp_path, 3, step="7", **options))
    assert "iteration 9" in str(refusal(tmp_path, 3, "in/iteration_00000009", step="7", **options))
    assert "the number of an iteration" in str(refusal(tmp_path, 2, step="1_7", **options))


def test_the_prefix_is_the_sources_or_the_users(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "iteration_00000001"
    write_iteration(folder, {"w": (np.zeros(4, np.float32), (2,))}, 2)
    for prefix, expected in (("checkpoint_", "model"), ("llama", "llama-model")):
        transform(folder, prefix=prefix, output=tmp_path / prefix, format="iteration")
        assert (tmp_path / prefix / "iteration_00000001" / f"{expected}-0000000-0000001.safetensors").exists()
    transform(tmp_path / "llama", output=tmp_path / "again", format="iteration")
    assert read_iteration(tmp_path / "again").prefix == "llama"
    options = {"src_strategy": None, "dst_strategy": None, "format": "iteration"}
    assert "beginning of a file's name" in str(refusal(tmp_path, 2, prefix="a/b", **options))


def test_replicas_that_differ_are_found_on_demand(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "iteration_00000001"
    write_iteration(folder, CUT, 4)
    spoilt = folder / "model-0000003-0000004.safetensors"
    data = bytearray(spoilt.read_bytes())
    data[-1] ^= 1
    spoilt.write_bytes(data)
    transform(folder, output=tmp_path / "out.ckpt")
    options = {"src_strategy": None, "dst_strategy": None, "check_replicas": True}
    assert "other values on rank 3" in str(refusal(tmp_path, 5, **options))


def unlisted(folder: Path, name: str, *arrays: np.ndarray) -> None:
    """An iteration of two ranks that hold a tensor of which `metadata.json` says nothing."""
    tensors = {"w": (np.zeros(4, np.float32), (2,))}
    document = write_iteration(folder, tensors, 2)
    for rank, array in enumerate(arrays):
        held = {"w": np.zeros(2, np.float32), name: array}
        write_file(folder / f"model-{rank:07d}-0000002.safetensors", held)
    write_metadata(folder, document)


WHOLE = {"src_strategy": None, "dst_strategy": None}


@pytest.mark.parametrize("name", ["global_step", "temperature"])
def test_what_metadata_does_not_list_is_carried_where_it_is_one_value_on_all_ranks(tmp_path: Path, name: str) -> None:
    one = np.array([7], np.int32)
    unlisted(tmp_path / "in", name, one, one)
    transform(tmp_path / "in", output=tmp_path / "out.ckpt")
    assert read_arrays(tmp_path / "out.ckpt")[name].tolist() == [7]
    unlisted(tmp_path / "in", name, one, one + 1)
    error = str(refusal(tmp_path, 5, **WHOLE))
    assert error.startswith(f"{name}, at (0): expected the values of rank 0, found other values on rank 1")


def test_what_metadata_does_not_list_is_else_refused_unless_the_user_says_what_it_is(tmp_path: Path) -> None:
    many = np.arange(3, dtype=np.float32)
    unlisted(tmp_path / "in", "mystery", many, many)
    error = refusal(tmp_path, 5, **WHOLE)
    assert "nothing about mystery" in str(error)
    assert "--replicated" in str(error)
    transform(tmp_path / "in", output=tmp_path / "out.ckpt", replicated=["myst*"])
    assert_same_arrays(read_arrays(tmp_path / "out.ckpt"), {"w": np.zeros(4, np.float32), "mystery": many})
    transform(tmp_path / "in", output=tmp_path / "less.ckpt", allow_unused=["myst*"])
    assert list(read_arrays(tmp_path / "less.ckpt")) == ["w"]
    unlisted(tmp_path / "in", "mystery", many, many[:2])
    assert "fp32 [2]" in str(refusal(tmp_path, 5, **WHOLE, replicated=["mystery"]))


def test_a_strategy_beside_an_iteration_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path)
    write_iteration(tmp_path / "it" / "iteration_00000001", CUT, 4)
    for source in ("it", "it/iteration_00000001"):
        assert "Leave --src-strategy out" in str(refusal(tmp_path, 2, source, dst_strategy=None))


def test_uneven_parts_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_iteration(tmp_path / "in" / "iteration_00000001", {"w": (np.zeros(5, np.float32), (1,))}, 1)
    (tmp_path / "dst.ckpt").write_bytes(strategy_bytes({"w": Layout((2,), ((0,),), split_shape=(3, 2))}))
    error = refusal(tmp_path, 5, src_strategy=None, format="iteration")
    assert isinstance(error, MismatchError)
    assert "equal slices, as this format knows no others" in str(error)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"output": "out.safetensors"}, "the name of a file"),
        ({"max_shard_size": "1GB"}, "--max-shard-size"),
        ({"output": "in/iteration_00000002"}, "a part of the input"),
        ({"output": "in", "force": True}, "it is, or holds, the input"),
    ],
    ids=str,
)
def test_options_that_contradict_an_iteration_are_refused(
    tmp_path: Path, options: dict[str, object], expected: str
) -> None:
    write_iteration(tmp_path / "in" / "iteration_00000001", CUT, 4)
    assert expected in str(refusal(tmp_path, 2, **WHOLE, **({"format": "iteration"} | options)))


def test_an_earlier_iteration_is_replaced_on_demand_and_the_folder_of_a_training_never(tmp_path: Path) -> None:
    for number in (1, 2):
        write_iteration(tmp_path / "in" / f"iteration_{number:08d}", CUT, 4)
    options = {"format": "iteration", "output": tmp_path / "out"}
    transform(tmp_path / "in", step="1", **options)
    refusal(tmp_path, 8, **WHOLE, **options)
    transform(tmp_path / "in", step="2", **options, force=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "iteration_00000002",
        "latest_checkpointed_iteration.txt",
        "pet-manifest.json",
    ]
    (tmp_path / "out" / "iteration_00000001").mkdir()
    before = tree(tmp_path / "out")
    assert "a folder with other folders" in str(refusal(tmp_path, 8, **WHOLE, **options, force=True))
    assert tree(tmp_path / "out") == before


def test_the_default_output_is_a_folder_of_the_sources_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_iteration(tmp_path / "run" / "iteration_00000001", CUT, 4)
    monkeypatch.chdir(tmp_path)
    transform("run", output="whole.ckpt")
    assert transform("whole.ckpt", format="iteration").output == "whole-transformed"
    assert_same_arrays(read_whole(Path("whole-transformed")), whole_of(CUT))
    assert transform("run").output == "run-transformed"
    assert_same_arrays(read_arrays(Path("run-transformed")), whole_of(CUT))


def test_new_names_and_types_keep_the_kinds_of_files(tmp_path: Path) -> None:
    write_iteration(tmp_path / "in" / "iteration_00000001", CUT, 4)
    table = {"adam_m.b.weight": "moment of b", "a.weight": "adam_m.a"}
    (tmp_path / "names.json").write_text(json.dumps(table))
    names = str(tmp_path / "names.json")
    transform(tmp_path / "in", names=names, dtype="bf16", output=tmp_path / "out", format="iteration")
    iteration = read_iteration(tmp_path / "out")
    assert {name: tensor.kind for name, tensor in iteration.tensors.items()} == {
        "adam_m.a": MODEL, "b.weight": MODEL, "moment of b": OPTIMIZER}  # fmt: skip
    assert {tensor.dtype.name for tensor in iteration.tensors.values()} == {"bf16"}
