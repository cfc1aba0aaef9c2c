"""What `mindspore.transform_checkpoints` gets wrong without a word: done right, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merge_cases import random, save
from rank_folders import assert_same_arrays, read_arrays, read_ranks, slices_of_rank, strategy_of, write_ranks
from strategy_bytes import strategy_json
from transform_cases import COLUMNS, ROWS, SOURCE, TARGET, TENSORS, WHOLE, Held, refusal, write_case, write_strategy

from ckpt_tools import TransformReport, transform
from ckpt_tools.layout.model import Layout, Strategy
from ckpt_tools.tensors.dtypes import BY_NAME


def reshard(folder: Path, **options: object) -> TransformReport:
    given = {"src_strategy": folder / "src.ckpt", "dst_strategy": folder / "dst.ckpt", "output": folder / "out"}
    return transform(folder / "in", **given | options)


def assert_resharded(folder: Path, tensors: Held, target: Strategy) -> None:
    for rank, held in enumerate(read_ranks(folder / "out")):
        assert_same_arrays(held, slices_of_rank(tensors, target, rank))


def test_parameters_that_the_strategy_leaves_out_are_taken_only_as_copies_that_the_user_vouches_for(
    tmp_path: Path,
) -> None:
    tensors = TENSORS | {"frozen.weight": random(5, 4, 4)}
    write_case(tmp_path, tensors=tensors)
    assert "frozen.weight" in str(refusal(tmp_path, 5))
    reshard(tmp_path, replicated=["frozen.*"])
    assert_resharded(tmp_path, tensors, TARGET)


def test_what_the_user_calls_a_copy_is_compared(tmp_path: Path) -> None:
    def change(rank: int, held: Held) -> None:
        held["frozen.weight"] = random(rank, 4, 4)

    write_case(tmp_path, change=change)
    error = refusal(tmp_path, 5, replicated=["frozen.*"])
    assert "frozen.weight" in str(error)
    assert "rank 1" in str(error)


def test_what_the_strategy_leaves_out_may_be_left_out(tmp_path: Path) -> None:
    write_case(tmp_path, tensors=TENSORS | {"adam_m.layer.weight": random(5, 4, 8), "extra": random(6, 3)})
    report = reshard(tmp_path, allow_unused=["adam_m.*", "extra"])
    assert report.dropped == ("adam_m.layer.weight", "extra")
    assert_resharded(tmp_path, TENSORS, TARGET)


@pytest.mark.parametrize("odd", [0, 3])
@pytest.mark.parametrize("kind", ["shape", "type", "axes"])
def test_the_rank_that_differs_in_shape_or_type_is_named(tmp_path: Path, kind: str, odd: int) -> None:
    changed = {
        "shape": lambda array: array[:, :3],
        "type": lambda array: array.astype(np.float32),
        "axes": lambda array: array.reshape(-1),
    }[kind]

    def change(rank: int, held: Held) -> None:
        if rank == odd:
            held["layer.weight"] = changed(held["layer.weight"])

    write_case(tmp_path, change=change)
    error = refusal(tmp_path, 5)
    assert [Path(p.where).parent.name for p in error.problems] == [f"rank_{odd}"]
    assert "layer.weight" in error.problems[0].where


def without(name: str, *ranks: int) -> object:
    def change(rank: int, held: Held) -> None:
        if rank in ranks:
            del held[name]

    return change


def test_redundancy_removed_from_safetensors_is_no_loss(tmp_path: Path) -> None:
    def change(rank: int, held: Held) -> None:
        for name in {0: ["norm.weight"], 1: [], 2: ["embedding.weight"], 3: ["norm.weight"]}[rank]:
            del held[name]

    write_strategy(tmp_path / "src.ckpt", SOURCE)
    write_strategy(tmp_path / "dst.ckpt", TARGET)
    name = "x_rank_{}-1_1.safetensors".format
    write_ranks(tmp_path / "in", TENSORS, SOURCE, name, change, {"format": "ms", "remove_redundancy": "True"})
    report = reshard(tmp_path, check_replicas=True)
    assert report.warnings == ()
    assert_resharded(tmp_path, TENSORS, TARGET)
    for rank in range(2):
        assert (
            b"remove_redundancy"
            not in (tmp_path / "out" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors").read_bytes()
        )


def test_redundancy_removed_from_ckpt_is_recognised_and_said(tmp_path: Path) -> None:
    write_case(tmp_path, change=without("norm.weight", 0, 1, 3))
    report = reshard(tmp_path)
    assert len(report.warnings) == 1
    assert "norm.weight" in report.warnings[0]
    assert_resharded(tmp_path, TENSORS, TARGET)


def test_a_tensor_that_one_of_several_copies_lacks_is_told(tmp_path: Path) -> None:
    write_case(tmp_path, change=without("norm.weight", 2))
    error = refusal(tmp_path, 5)
    assert [Path(problem.where).parent.name for problem in error.problems] == ["rank_2"]


def test_files_that_claim_to_be_redundant_are_held_to_it(tmp_path: Path) -> None:
    write_strategy(tmp_path / "src.ckpt", SOURCE)
    metadata = {"remove_redundancy": "False"}
    change = without("embedding.weight", 2, 3)
    write_ranks(tmp_path / "in", TENSORS, SOURCE, "{}.safetensors".format, change, metadata)
    assert len(refusal(tmp_path, 5, dst_strategy=None).problems) == 2


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_part_that_no_rank_holds_is_a_gap(tmp_path: Path, suffix: str) -> None:
    write_strategy(tmp_path / "src.ckpt", SOURCE)
    metadata = {"remove_redundancy": "True"}
    name = ("{}" + suffix).format
    write_ranks(tmp_path / "in", TENSORS, SOURCE, name, without("embedding.weight", 1, 3), metadata)
    assert "part (1, 0) on none of ranks 1, 3" in str(refusal(tmp_path, 5, dst_strategy=None))


@pytest.mark.parametrize("target", ["dst.ckpt", None])
def test_a_parameter_of_the_strategy_that_no_file_holds_is_missed(tmp_path: Path, target: str | None) -> None:
    write_case(tmp_path, change=without("embedding.weight", 0, 1, 2, 3))
    error = refusal(tmp_path, 5, dst_strategy=target)
    assert "embedding.weight" in str(error)
    report = reshard(
        tmp_path,
        dst_strategy=target and tmp_path / target,
        output=tmp_path / ("out" if target else "out.ckpt"),
        allow_missing=["embedding.*"],
    )
    assert report.missing == ("embedding.weight",)


def test_optimizer_states_that_no_file_holds_are_reported(tmp_path: Path) -> None:
    source = strategy_of(SOURCE.stages[0] | {"adam_m.layer.weight": Layout((2, 2), COLUMNS)})
    write_case(tmp_path, source=source, change=lambda rank, held: None)
    assert reshard(tmp_path, dst_strategy=None, output=tmp_path / "out.ckpt").missing == ("adam_m.layer.weight",)


def test_step_10_comes_behind_step_9(tmp_path: Path) -> None:
    write_strategy(tmp_path / "src.ckpt", SOURCE)
    for epoch, step in ((9, 2), (10, 1), (10, 2), (2, 100)):
        tensors = TENSORS | {"global_step": np.array(epoch * 100 + step, np.int32)}
        folder = write_ranks(tmp_path / f"{epoch}-{step}", tensors, SOURCE, f"x_rank_{{}}-{epoch}_{step}.ckpt".format)
        for rank in range(4):
            target = tmp_path / "in" / f"rank_{rank}"
            target.mkdir(parents=True, exist_ok=True)
            next((folder / f"rank_{rank}").iterdir()).rename(target / f"x_rank_{rank}-{epoch}_{step}.ckpt")
    for step, expected in ((None, 1002), ("9_2", 902), ("2_100", 300)):
        output = tmp_path / f"{step}.ckpt"
        report = reshard(tmp_path, dst_strategy=None, output=output, step=step)
        assert report.step == (step or "10_2")
        assert read_arrays(output)["global_step"] == expected


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (6, 4), (1, 3)])
def test_numbers_of_devices_need_not_divide_each_other(tmp_path: Path, before: int, after: int) -> None:
    tensors = {"w": random(0, 12, 24, dtype="bf16"), "v": random(1, 24)}
    sides = [
        strategy_of({"w": Layout((count,), cut), "v": Layout((count,), ((0,),))})
        for count, cut in ((before, ROWS), (after, COLUMNS))
    ]
    write_case(tmp_path, tensors=tensors, source=sides[0], target=sides[1])
    reshard(tmp_path)
    assert_resharded(tmp_path, tensors, sides[1])


@pytest.mark.parametrize("cut", [ROWS, ((0,), (1,))])
def test_uneven_axes_are_cut_where_the_strategy_says(tmp_path: Path, cut: tuple[tuple[int, ...], ...]) -> None:
    tensors = {"table": random(0, 11, 6, dtype="fp16")}
    source = strategy_of({"table": Layout((2, 3), cut, split_shape=(5, 4, 2))})
    target = strategy_of({"table": Layout((2,), ROWS, split_shape=(1, 10))})
    write_case(tmp_path, tensors=tensors, source=source, target=target)
    reshard(tmp_path, check_replicas=True)
    assert_resharded(tmp_path, tensors, target)
    assert [held["table"].shape for held in read_ranks(tmp_path / "out")] == [(1, 6), (10, 6)]


def test_lengths_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    tensors = {"table": random(0, 11, 6)}
    source = strategy_of({"table": Layout((3,), ROWS, split_shape=(5, 4, 2))})
    write_case(tmp_path, tensors=tensors, source=source, target=strategy_of({"table": Layout((2,), ROWS)}))
    assert "axis 0 of length 11" in str(refusal(tmp_path, 5))
    write_strategy(tmp_path / "src.ckpt", strategy_of({"table": Layout((3,), ROWS, split_shape=(5, 2, 4))}))
    assert {Path(p.where.split(",")[0]).parent.name for p in refusal(tmp_path, 5).problems} == {"rank_1", "rank_2"}
    write_strategy(tmp_path / "src.ckpt", strategy_of({"table": Layout((3,), ROWS, split_shape=(5, 6))}))
    assert "3 lengths" in str(refusal(tmp_path, 5))


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "bool", "uint8", "int64", "fp64", "complex64"])
def test_types_that_numpy_or_mindspore_lack_are_moved(tmp_path: Path, dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (8, 4 * BY_NAME[dtype].itemsize)).astype(np.uint8)
    tensors = {"w": bits.view(BY_NAME[dtype].numpy)}
    source, target = (strategy_of({"w": Layout((count,), cut)}) for count, cut in ((4, ROWS), (2, COLUMNS)))
    for suffix in (".ckpt", ".safetensors"):
        folder = tmp_path / suffix
        write_case(folder, suffix, tensors=tensors, source=source, target=target)
        reshard(folder, dtype="bf16" if dtype.startswith("fp8") else "keep")
        assert_resharded(folder, tensors, target)


def test_json_strategies_of_several_stages(tmp_path: Path) -> None:
    stages = [{"embedding.weight": Layout((2,), ROWS)}, {"layer.weight": Layout((2,), COLUMNS)}]
    tensors = {name: TENSORS[name] for name in ("embedding.weight", "layer.weight", "global_step")}
    write_case(tmp_path, tensors=tensors, source=strategy_of(*stages))
    (tmp_path / "json").mkdir()
    for rank in range(4):
        (tmp_path / "json" / f"strategy_{rank}.json").write_bytes(strategy_json(stages[rank // 2], rank // 2))
    write_strategy(tmp_path / "dst.ckpt", strategy_of({name: Layout((2,), WHOLE) for name in list(tensors)[:2]}))
    reshard(tmp_path, src_strategy=tmp_path / "json")
    for held in read_ranks(tmp_path / "out"):
        assert_same_arrays(held, tensors)


def test_nested_maps_cut_an_axis_by_several_device_axes(tmp_path: Path) -> None:
    tensors = {"w": random(0, 8, 8, dtype="bf16")}
    source = strategy_of({"w": Layout((2, 2, 2), ((0, 2), (1,)))})
    target = strategy_of({"w": Layout((2, 2), ((), (0, 1)))})
    write_case(tmp_path, tensors=tensors, source=source, target=target)
    reshard(tmp_path)
    assert_resharded(tmp_path, tensors, target)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    def change(rank: int, held: Held) -> None:
        held["frozen.weight"] = random(0, 4, 4)
        if rank == 1:
            held["embedding.weight"] = held["embedding.weight"][:3]
        if rank == 2:
            held["layer.weight"] = held["layer.weight"].astype(np.float16)
        if rank == 3:
            del held["norm.weight"]

    write_case(tmp_path, change=change)
    text = str(refusal(tmp_path, 5))
    for name in ("embedding.weight", "layer.weight", "norm.weight", "frozen.weight"):
        assert name in text
    assert len(text.splitlines()) == 4


def test_what_the_target_lacks_and_what_it_misses_are_told_at_once(tmp_path: Path) -> None:
    layouts = {name.replace("layer", "layers"): layout for name, layout in TARGET.stages[0].items()}
    write_case(tmp_path, target=strategy_of(layouts | {"norm.weight": Layout((2,), ROWS)}))
    text = str(refusal(tmp_path, 5))
    for part in ("layer.weight: no layout", "Is it layers.weight", "layers.weight: not in the source", "norm.weight"):
        assert part in text


def test_more_problems_than_a_reader_wants_are_counted(tmp_path: Path) -> None:
    tensors = {f"{number}.weight": random(number, 4, 4) for number in range(60)}
    source = strategy_of({name: Layout((2,), ROWS) for name in tensors})

    def change(rank: int, held: Held) -> None:
        if rank == 1:
            held |= {name: array[:1] for name, array in held.items()}

    write_case(tmp_path, change=change, tensors=tensors, source=source)
    error = refusal(tmp_path, 5)
    assert len(error.problems) == 51
    assert "10 more" in str(error)


def test_a_file_of_one_rank_that_leaves_replicas_to_others_is_not_taken_for_the_whole_without_a_word(
    tmp_path: Path,
) -> None:
    save(tmp_path / "one.safetensors", {"a": random(0, 4)}, {"format": "ms", "remove_redundancy": "True"})
    report = transform(tmp_path / "one.safetensors", output=tmp_path / "out.ckpt")
    assert any("remove_redundancy" in warning and "--src-strategy" in warning for warning in report.warnings)
