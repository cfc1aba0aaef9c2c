"""What may go wrong with a transform's inputs: a typed error that tells all of it, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from merge_cases import add_crc, save
from rank_folders import assert_same_arrays, read_arrays, slices_of_rank, strategy_of
from strategy_bytes import strategy_bytes, strategy_json
from transform_cases import COLUMNS, ROWS, SOURCE, TARGET, TENSORS, Held, refusal, write_case, write_strategy

from ckpt_tools import transform
from ckpt_tools.layout.model import Layout

KEY = "only_trainable_params: False"

SIDES = pytest.mark.parametrize("side", ["src", "dst"])


def rank_file(folder: Path, rank: int, suffix: str = ".ckpt") -> Path:
    return folder / "in" / f"rank_{rank}" / f"llama_rank_{rank}-3_2{suffix}"


@SIDES
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_38_weights_given_as_a_strategy(tmp_path: Path, side: str, suffix: str) -> None:
    write_case(tmp_path)
    save(tmp_path / f"weights{suffix}", TENSORS)
    error = refusal(tmp_path, 4, **{f"{side}_strategy": f"weights{suffix}"})
    assert f"weights{suffix}" in str(error)
    assert "the weights, not their strategy" in str(error)


@SIDES
@pytest.mark.parametrize("kind", ["cut", "empty", "noise", "json"])
def test_39_a_strategy_that_is_damaged(tmp_path: Path, side: str, kind: str) -> None:
    write_case(tmp_path)
    path = tmp_path / f"{side}.ckpt"
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-3], "empty": b"", "noise": bytes(range(128, 256)), "json": b'{"a": '}[kind])
    assert f"{side}.ckpt" in str(refusal(tmp_path, 4))


def test_39_two_damaged_strategies_are_both_told(tmp_path: Path) -> None:
    write_case(tmp_path)
    for side in ("src", "dst"):
        (tmp_path / f"{side}.ckpt").write_bytes(b"")
    error = refusal(tmp_path, 4)
    assert [Path(problem.where).name for problem in error.problems] == ["src.ckpt", "dst.ckpt"]


@SIDES
def test_a_strategy_that_is_not_there(tmp_path: Path, side: str) -> None:
    write_case(tmp_path)
    assert "nowhere" in str(refusal(tmp_path, 3, **{f"{side}_strategy": "nowhere"}))


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    write_case(tmp_path)
    for options in ({}, {"src_strategy": None}):
        assert "nowhere" in str(refusal(tmp_path, 3, "nowhere", **options))


def test_40_names_with_a_dash_are_names(tmp_path: Path) -> None:
    tensors = {"0-model.a-b": TENSORS["layer.weight"], "plain": TENSORS["embedding.weight"]}
    source = strategy_of({"0-model.a-b": Layout((2,), ROWS), "plain": Layout((2,), ROWS)})
    target = strategy_of({"0-model.a-b": Layout((4,), COLUMNS), "plain": Layout((4,), COLUMNS)})
    write_case(tmp_path, tensors=tensors, source=source, target=target)
    options = {"src_strategy": tmp_path / "src.ckpt", "dst_strategy": tmp_path / "dst.ckpt"}
    transform(tmp_path / "in", **options, output=tmp_path / "out")
    for rank in range(4):
        held = read_arrays(tmp_path / "out" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt")
        assert_same_arrays(held, slices_of_rank(tensors, target, rank))


@SIDES
@pytest.mark.parametrize("layout", [Layout((2, 2), ((2,), ())), Layout((2, 2), ((0,), (0,))), Layout((0,), ROWS)])
def test_41_layouts_that_cannot_be(tmp_path: Path, side: str, layout: Layout) -> None:
    write_case(tmp_path)
    (tmp_path / f"{side}.ckpt").write_bytes(strategy_bytes(SOURCE.stages[0] | {"layer.weight": layout}))
    assert "layer.weight" in str(refusal(tmp_path, 4))


@SIDES
@pytest.mark.parametrize(
    "layout", [Layout((2, 2), ((0,), (), ())), Layout((4, 4), ROWS), Layout((2, 2), ((), ()), 1, 3)]
)
def test_41_layouts_that_do_not_fit_the_tensor_or_each_other(tmp_path: Path, side: str, layout: Layout) -> None:
    write_case(tmp_path)
    (tmp_path / f"{side}.ckpt").write_bytes(strategy_bytes(SOURCE.stages[0] | {"layer.weight": layout}))
    assert "layer.weight" in str(refusal(tmp_path, 5))


def test_41_an_axis_that_the_targets_ranks_cannot_share_evenly(tmp_path: Path) -> None:
    write_case(tmp_path, target=strategy_of({name: Layout((4,), ROWS) for name in ("embedding.weight", "layer.weight")}
                                            | {"norm.weight": Layout((4,), ((0,),))}))  # fmt: skip
    error = refusal(tmp_path, 5)
    assert [problem.where for problem in error.problems] == ["norm.weight"]
    assert "axis 0 of length 6" in str(error)


def test_42_frozen_parameters_that_the_sources_strategy_leaves_out(tmp_path: Path) -> None:
    write_case(tmp_path)
    trained = {name: layout for name, layout in SOURCE.stages[0].items() if name == "norm.weight"}
    write_strategy(tmp_path / "src.ckpt", strategy_of(trained))
    error = refusal(tmp_path, 5)
    assert len(error.problems) == 1
    for text in ("embedding.weight, layer.weight", KEY, "--replicated"):
        assert text in str(error)


def test_42_frozen_parameters_that_the_targets_strategy_leaves_out(tmp_path: Path) -> None:
    write_case(tmp_path)
    trained = {name: layout for name, layout in TARGET.stages[0].items() if name == "norm.weight"}
    write_strategy(tmp_path / "dst.ckpt", strategy_of(trained))
    error = refusal(tmp_path, 5)
    for text in ("embedding.weight", "layer.weight", KEY, "--allow-unused"):
        assert text in str(error)


def pipeline(folder: Path, changes: dict[str, bytes]) -> None:
    """A source of two stages whose strategy folder is changed."""
    stages = [{"embedding.weight": Layout((2,), ROWS)}, {"layer.weight": Layout((2,), COLUMNS)}]
    tensors = {name: TENSORS[name] for name in ("embedding.weight", "layer.weight")}
    (folder / "src").mkdir()
    write_case(folder, tensors=tensors, source=strategy_of(*stages))
    shutil.rmtree(folder / "src")
    shutil.move(folder / "src.ckpt", folder / "src")
    for name, data in changes.items():
        (folder / "src" / name).write_bytes(data)


def test_43_a_stage_that_is_missing(tmp_path: Path) -> None:
    pipeline(tmp_path, {})
    (tmp_path / "src" / "stage_0.ckpt").unlink()
    assert "stage 0 too" in str(refusal(tmp_path, 5, src_strategy="src"))


def test_43_the_file_of_one_stage_for_a_pipeline(tmp_path: Path) -> None:
    pipeline(tmp_path, {})
    error = refusal(tmp_path, 5, src_strategy="src/stage_0.ckpt")
    assert "the folder with the files of all stages" in str(error)
    assert "found 4" in str(error)


@pytest.mark.parametrize("build", [strategy_bytes, strategy_json])
def test_43_a_stage_with_two_layouts(tmp_path: Path, build: type) -> None:
    pipeline(tmp_path, {"again": build({"layer.weight": Layout((2,), ROWS)}, 1)})
    error = refusal(tmp_path, 5, src_strategy="src")
    assert "another layout" in str(error)
    assert "layer.weight" in str(error)


def test_46_ranks_at_different_steps(tmp_path: Path) -> None:
    write_case(tmp_path)
    rank_file(tmp_path, 2).rename(rank_file(tmp_path, 2).with_name("llama_rank_2-3_4.ckpt"))
    error = refusal(tmp_path, 5)
    assert "rank_0 is at step 3_2, rank_2 at step 3_4" in str(error)
    assert "--step" in str(error)


def test_46_a_step_that_one_rank_lacks(tmp_path: Path) -> None:
    write_case(tmp_path)
    for rank in (0, 1, 3):
        shutil.copy(rank_file(tmp_path, rank), rank_file(tmp_path, rank).with_name("llama-10_2.ckpt"))
    error = refusal(tmp_path, 3, step="10_2")
    assert "rank_2" in str(error)
    assert "3_2" in str(error)


@pytest.mark.parametrize("step", ["9", "x_1", "", "1_2_3", "-1_2"])
def test_a_step_that_is_none(tmp_path: Path, step: str) -> None:
    assert "EPOCH_STEP" in str(refusal(write_case(tmp_path), 2, step=step))


def test_files_with_and_without_a_step(tmp_path: Path) -> None:
    write_case(tmp_path)
    shutil.copy(rank_file(tmp_path, 1), tmp_path / "in" / "rank_1" / "other.ckpt")
    assert "other.ckpt" in str(refusal(tmp_path, 5))


def test_two_files_of_one_step(tmp_path: Path) -> None:
    write_case(tmp_path)
    shutil.copy(rank_file(tmp_path, 1), tmp_path / "in" / "rank_1" / "other-3_2.ckpt")
    assert "2 files" in str(refusal(tmp_path, 5))


def test_the_file_of_another_rank(tmp_path: Path) -> None:
    write_case(tmp_path)
    shutil.copy(rank_file(tmp_path, 0), tmp_path / "in" / "rank_1")
    rank_file(tmp_path, 1).unlink()
    assert "the file of rank 0" in str(refusal(tmp_path, 5))


def test_files_of_two_formats(tmp_path: Path) -> None:
    write_case(tmp_path)
    rank_file(tmp_path, 3).unlink()
    save(rank_file(tmp_path, 3, ".safetensors"), slices_of_rank(TENSORS, SOURCE, 3))
    assert "ckpt and safetensors" in str(refusal(tmp_path, 5))


def spoil(name: str, rank: int) -> object:
    """What changes a value that one rank holds."""

    def change(number: int, held: Held) -> None:
        if number == rank:
            held[name] = held[name].copy()
            held[name][(0,) * held[name].ndim] += 1

    return change


def test_47_replicas_that_differ(tmp_path: Path) -> None:
    write_case(tmp_path, change=spoil("embedding.weight", 2))
    error = refusal(tmp_path, 5, check_replicas=True)
    assert [problem.where for problem in error.problems] == ["embedding.weight, at (0, 0)"]
    assert "rank 2" in str(error)
    assert "rank 0" in str(error)


def test_47_unless_asked_for_the_first_replica_is_taken_with_a_warning(tmp_path: Path) -> None:
    write_case(tmp_path, change=spoil("embedding.weight", 2))
    report = transform(tmp_path / "in", src_strategy=tmp_path / "src.ckpt", output=tmp_path / "out.ckpt")
    assert "the copies of embedding.weight on rank 0 and rank 2 differ" in report.warnings[0]
    assert_same_arrays(read_arrays(tmp_path / "out.ckpt"), TENSORS)


def test_47_scalars_that_differ_are_always_refused(tmp_path: Path) -> None:
    write_case(tmp_path, change=spoil("global_step", 3))
    assert "global_step" in str(refusal(tmp_path, 5))


def test_47_tied_copies_of_two_stages_that_differ(tmp_path: Path) -> None:
    stage = {"embedding.weight": Layout((2,), ROWS)}
    tensors = {"embedding.weight": TENSORS["embedding.weight"]}
    write_case(tmp_path, change=spoil("embedding.weight", 3), tensors=tensors, source=strategy_of(stage, stage))
    error = refusal(tmp_path, 5, dst_strategy=None, check_replicas=True)
    assert "the stage of rank 2" in str(error)


def test_47_many_differences_are_told_in_part(tmp_path: Path) -> None:
    tensors = {f"{number}.weight": TENSORS["layer.weight"] for number in range(60)}
    source = strategy_of({name: Layout((2,), ((), ())) for name in tensors})

    def change(rank: int, held: Held) -> None:
        held |= {name: array + rank for name, array in held.items()}

    write_case(tmp_path, change=change, tensors=tensors, source=source)
    error = refusal(tmp_path, 5, dst_strategy=None, check_replicas=True)
    assert len(error.problems) == 51
    assert "10 more" in str(error)


@pytest.mark.parametrize("rank", [1, 3])
def test_48_a_rank_folder_is_missing(tmp_path: Path, rank: int) -> None:
    write_case(tmp_path)
    shutil.rmtree(tmp_path / "in" / f"rank_{rank}")
    assert ("no rank_1" if rank == 1 else "found 3") in str(refusal(tmp_path, 5))


def test_48_a_rank_folder_too_many(tmp_path: Path) -> None:
    write_case(tmp_path)
    shutil.copytree(tmp_path / "in" / "rank_0", tmp_path / "in" / "rank_4")
    rank_file(tmp_path, 4).parent.joinpath("llama_rank_0-3_2.ckpt").rename(rank_file(tmp_path, 4))
    assert "found 5" in str(refusal(tmp_path, 5))


def test_48_a_strategy_for_2_devices_with_4_rank_folders(tmp_path: Path) -> None:
    write_case(tmp_path)
    error = refusal(tmp_path, 5, src_strategy="dst.ckpt")
    assert "expected 2" in str(error)
    assert "found 4" in str(error)


@pytest.mark.parametrize("left", ["nothing", "notes"])
def test_48_a_rank_folder_without_a_checkpoint(tmp_path: Path, left: str) -> None:
    write_case(tmp_path)
    for rank in (1, 2):
        rank_file(tmp_path, rank).unlink()
        if left == "notes":
            (tmp_path / "in" / f"rank_{rank}" / "notes.txt").write_text("moved")
    error = refusal(tmp_path, 3)
    assert [Path(problem.where).name for problem in error.problems] == ["rank_1", "rank_2"]


def test_other_spellings_of_a_rank_are_no_ranks(tmp_path: Path) -> None:
    write_case(tmp_path)
    for rank in range(4):
        (tmp_path / "in" / f"rank_{rank}").rename(tmp_path / "in" / f"rank_0{rank}")
    assert "rank_0, rank_1, ..." in str(refusal(tmp_path, 2))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_truncated_files_of_several_ranks_are_all_told(tmp_path: Path, suffix: str) -> None:
    write_case(tmp_path, suffix)
    for rank in (1, 2):
        path = rank_file(tmp_path, rank, suffix)
        path.write_bytes(path.read_bytes()[:-5])
    error = refusal(tmp_path, 4)
    for rank in (1, 2):
        assert f"llama_rank_{rank}-3_2{suffix}" in str(error)


@pytest.mark.parametrize("kind", ["empty", "pickle", "noise"])
def test_a_rank_file_that_is_none(tmp_path: Path, kind: str) -> None:
    write_case(tmp_path)
    data = {"empty": b"", "pickle": b"\x80\x04\x95" + bytes(100), "noise": bytes(range(200, 256))}[kind]
    rank_file(tmp_path, 2).write_bytes(data)
    assert "llama_rank_2-3_2.ckpt" in str(refusal(tmp_path, 4))


def test_a_wrong_crc_is_found_on_demand(tmp_path: Path) -> None:
    write_case(tmp_path)
    for rank in range(4):
        add_crc(rank_file(tmp_path, rank))
    data = bytearray(rank_file(tmp_path, 3).read_bytes())
    data[data.index(np.ascontiguousarray(slices_of_rank(TENSORS, SOURCE, 3)["layer.weight"]).tobytes())] ^= 1
    rank_file(tmp_path, 3).write_bytes(data)
    assert "llama_rank_3-3_2.ckpt" in str(refusal(tmp_path, 4, check_crc=True))


@pytest.mark.parametrize("ranks", [None, "0-1"])
@pytest.mark.parametrize("dtype", ["keep", "fp32"])
def test_a_wrong_crc_is_found_on_the_way_where_a_file_is_read_whole(
    tmp_path: Path, ranks: str | None, dtype: str
) -> None:
    write_case(tmp_path)
    for rank in range(4):
        add_crc(rank_file(tmp_path, rank))
    data = bytearray(rank_file(tmp_path, 1).read_bytes())
    data[data.index(np.ascontiguousarray(slices_of_rank(TENSORS, SOURCE, 1)["layer.weight"]).tobytes())] ^= 1
    rank_file(tmp_path, 1).write_bytes(data)
    assert "llama_rank_1-3_2.ckpt: expected" in str(refusal(tmp_path, 4, ranks=ranks, dtype=dtype))


def test_ranks_without_a_strategy_and_a_strategy_without_ranks(tmp_path: Path) -> None:
    write_case(tmp_path)
    save(tmp_path / "whole.ckpt", TENSORS)
    assert "--src-strategy" in str(refusal(tmp_path, 2, src_strategy=None))
    assert "--src-strategy" in str(refusal(tmp_path, 2, "whole.ckpt"))
    assert "--step" in str(refusal(tmp_path, 2, "whole.ckpt", src_strategy=None, step="3_2"))


def test_a_folder_above_the_ranks_is_told_where_they_are(tmp_path: Path) -> None:
    write_case(tmp_path / "run")
    strategy = tmp_path / "run" / "src.ckpt"
    assert f"Is it {tmp_path / 'run' / 'in'}?" in str(
        refusal(tmp_path, 2, "run", src_strategy=strategy, dst_strategy=None)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"output": "out.ckpt"},
        {"output": "out.safetensors"},
        {"max_shard_size": 100},
        {"prefix": ""},
        {"prefix": "a/b"},
        {"prefix": ".hidden"},
        {"prefix": "llama-9_"},
        {"dtype": "int8"},
        {"format": "hdf5"},
        {"output": "in", "force": True},
        {"output": "in/rank_4"},
        {"output": "."},
        {"output": "in/rank_0/out.ckpt", "dst_strategy": None},
        {"output": "in/out.ckpt", "dst_strategy": None},
    ],
)
def test_arguments_that_contradict_each_other_or_the_inputs(tmp_path: Path, options: dict[str, object]) -> None:
    refusal(write_case(tmp_path), 2, **options)


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    assert "100 B free" in str(refusal(tmp_path, 7))


def test_a_table_of_names_with_errors(tmp_path: Path) -> None:
    write_case(tmp_path)
    (tmp_path / "names.json").write_text(json.dumps({"layer.weights": "x"}))
    assert "layer.weights" in str(refusal(tmp_path, 5, names=str(tmp_path / "names.json")))
