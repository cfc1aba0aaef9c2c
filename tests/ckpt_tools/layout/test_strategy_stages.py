"""Pipelines: merged files, folders of the stages' files, and every way in which they do not fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from ckpt_bytes import field
from strategy_bytes import layout_item, strategy_bytes, strategy_item, strategy_json
from strategy_cases import refusal

from ckpt_tools.layout import Layout, read_strategy

ROWS, COLUMNS, WHOLE = Layout((2, 2), ((1,), ())), Layout((2, 2), ((), (0,))), Layout((4,), ())

STAGES = (
    {"model.embedding": ROWS, "model.layers.0-a": COLUMNS},
    {"model.layers.1-a": COLUMNS, "1-b": WHOLE},
    {"model.embedding": COLUMNS, "head": ROWS},
)

Writer = Callable[[Mapping[str, Layout], int], bytes]
WRITERS = [strategy_bytes, strategy_json]


def merged(stages: Mapping[int, Mapping[str, Layout]]) -> dict[str, Layout]:
    """The layouts under the names that `merge_pipeline_strategys` gives them."""
    return {f"{stage}-{name}": layout for stage, layouts in stages.items() for name, layout in layouts.items()}


@pytest.mark.parametrize("write", WRITERS)
def test_a_merged_file_holds_all_stages(tmp_path: Path, write: Writer) -> None:
    path = tmp_path / "merged.ckpt"
    path.write_bytes(write(merged(dict(enumerate(STAGES))), 2))
    strategy = read_strategy(path)
    assert strategy.stages == STAGES
    assert (strategy.stage_devices, strategy.ranks) == (4, 12)
    assert [strategy.stage_of(rank) for rank in (0, 3, 4, 11)] == [0, 0, 1, 2]


def test_the_stages_of_a_merged_file_may_be_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "merged.ckpt"
    path.write_bytes(strategy_bytes(merged({10: {"w": ROWS}, **{stage: {"w": COLUMNS} for stage in range(10)}})))
    assert [stage["w"] for stage in read_strategy(path).stages] == [COLUMNS] * 10 + [ROWS]


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_of_files_means_what_the_merged_file_means(tmp_path: Path, write: Writer) -> None:
    for stage, layouts in reversed(list(enumerate(STAGES))):
        (tmp_path / f"rank_{9 - stage}.ckpt").write_bytes(write(layouts, stage))
    strategy = read_strategy(tmp_path)
    assert strategy.stages == STAGES
    assert strategy.path == tmp_path
    assert len(list(tmp_path.iterdir())) == 3


def test_the_formats_of_a_folder_may_differ(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(strategy_bytes(STAGES[0], 0))
    (tmp_path / "b.json").write_bytes(strategy_json(STAGES[2], 1))
    assert read_strategy(tmp_path).stages == (STAGES[0], STAGES[2])


def test_ranks_of_a_stage_may_each_have_written_its_file(tmp_path: Path) -> None:
    for rank in range(12):
        layouts = STAGES[rank // 4]
        if rank == 6:
            layouts = dict(reversed(layouts.items()))
        write = strategy_json if rank == 7 else strategy_bytes
        (tmp_path / f"strategy_rank_{rank}.ckpt").write_bytes(write(layouts, rank // 4))
    assert read_strategy(tmp_path).stages == STAGES


def test_the_file_that_a_folder_was_merged_into_may_lie_in_it(tmp_path: Path) -> None:
    for stage, layouts in enumerate(STAGES):
        (tmp_path / f"{stage}.ckpt").write_bytes(strategy_bytes(layouts, stage))
    (tmp_path / "merged.ckpt").write_bytes(strategy_bytes(merged(dict(enumerate(STAGES)))))
    assert read_strategy(tmp_path).stages == STAGES


def test_names_with_a_dash_are_plain_names_unless_all_begin_with_a_stage(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for layouts in ({"0-a": ROWS, "b": ROWS}, {"0-a": ROWS, "x-0": ROWS}, {"0-": ROWS}, {"00-a": ROWS}, {"²-a": ROWS}):
        path.write_bytes(strategy_bytes(layouts))
        assert read_strategy(path).stages == (layouts,)


def test_a_merged_name_is_cut_at_its_first_dash_only(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(strategy_bytes({"0-1-a-b": ROWS, "0--": ROWS, "0-\n": ROWS}))
    assert read_strategy(path).stages == ({"1-a-b": ROWS, "-": ROWS, "\n": ROWS},)


def test_one_file_of_a_later_stage_is_not_enough(tmp_path: Path) -> None:
    error = refusal(tmp_path / "x.ckpt", strategy_bytes(STAGES[0], 2), exit_code=5)
    assert "expected stages 0 to 1 too, found only stage 2 of the pipeline" in str(error)
    assert "Pass the folder" in str(error)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((1,), "expected stage 0 too, found only stage 1"),
        ((0, 2), "expected stage 1 too, found only stages 0, 2"),
        ((1, 2, 5, 9), "expected stages 0, 3 to 4, 6 to 8 too, found only stages 1 to 2, 5, 9"),
        ((0, 4_294_967_295), "expected stages 1 to 4294967294 too"),
        (tuple(range(1, 100, 2)), "expected stages 0, 2, 4, 6, 8, more too, found only stages 1, 3, 5, 7, 9, more"),
    ],
)
def test_missing_stages_are_named(tmp_path: Path, stages: tuple[int, ...], says: str) -> None:
    data = strategy_bytes(merged({stage: {"w": ROWS} for stage in stages}))
    assert says in str(refusal(tmp_path / "x.ckpt", data, exit_code=5))
    folder = tmp_path / "folder"
    folder.mkdir()
    for stage in stages:
        (folder / str(stage)).write_bytes(strategy_bytes({"w": ROWS}, stage))
    assert says in str(refusal(folder, exit_code=5))


def test_files_of_one_stage_that_differ_are_named_with_their_parameters(tmp_path: Path) -> None:
    first = {f"w{i}": ROWS for i in range(9)}
    (tmp_path / "a.ckpt").write_bytes(strategy_bytes({**first, "only.a": ROWS}))
    (tmp_path / "b.ckpt").write_bytes(strategy_bytes({**first, "w3": COLUMNS}))
    (tmp_path / "c.ckpt").write_bytes(strategy_bytes(dict.fromkeys(first, COLUMNS)))
    b, c = refusal(tmp_path, exit_code=5).problems
    assert b.where == f"{tmp_path / 'b.ckpt'}, stage 0"
    assert f"than in {tmp_path / 'a.ckpt'} for parameters 'w3', 'only.a'" in b.found
    assert "'w0', 'w1', 'w2', 'w3', 'w4' and 5 more" in c.found


def test_contradictions_and_missing_stages_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(strategy_bytes({"w": ROWS}, 1))
    (tmp_path / "b.ckpt").write_bytes(strategy_bytes({"w": COLUMNS}, 1))
    assert len(refusal(tmp_path, exit_code=5).problems) == 2


def test_a_file_without_operators_is_a_whole_strategy_alone_but_no_stage_of_several(tmp_path: Path) -> None:
    alone = field(3, layout_item("w", ROWS))
    (tmp_path / "a.ckpt").write_bytes(alone)
    (tmp_path / "b.ckpt").write_bytes(alone)
    assert read_strategy(tmp_path).stages == ({"w": ROWS},)
    (tmp_path / "c.ckpt").write_bytes(strategy_bytes({"w": ROWS}, 0))
    assert "no operator (parallel_strategy_item) that names its stage" in str(refusal(tmp_path))


def test_an_operator_of_stage_0_does_not_hide_the_stage_of_the_others(tmp_path: Path) -> None:
    """MindSpore says 0 of an operator whose strategy it generated, and then takes the stage of the first one."""
    (tmp_path / "a.ckpt").write_bytes(strategy_bytes(STAGES[0], 0))
    (tmp_path / "b.ckpt").write_bytes(field(2, strategy_item(0)) + strategy_bytes(STAGES[1], 1))
    assert read_strategy(tmp_path).stages == STAGES[:2]


def test_operators_of_several_stages_without_names_by_stage_are_refused(tmp_path: Path) -> None:
    data = field(2, strategy_item(2)) + strategy_bytes(STAGES[0], 1)
    assert "operators of stages 1 to 2" in str(refusal(tmp_path / "x", data))


def test_stages_with_other_numbers_of_devices_are_refused(tmp_path: Path) -> None:
    small = Layout((2,), ((0,),))
    data = strategy_bytes(merged({0: {f"w{i}": ROWS for i in range(9)}, 1: {f"v{i}": small for i in range(7)}}))
    (problem,) = refusal(tmp_path / "x", data, exit_code=5).problems
    assert problem.where.endswith("stage 1, parameters 'v0', 'v1', 'v2', 'v3', 'v4' and 2 more")
    assert problem.found == "2 devices, by the device matrix [2]"
    assert problem.expected.startswith("4 as for 9 other parameters")


def test_single_layouts_with_another_number_of_devices_are_listed(tmp_path: Path) -> None:
    odd = {"one": Layout((1,), ()), "none": Layout((), ()), "eight": Layout((2, 4), ((0,),))}
    error = refusal(tmp_path / "x", strategy_bytes({**dict.fromkeys("abcde", ROWS), **odd}), exit_code=5)
    assert [problem.where.rsplit(", ", 1)[1] for problem in error.problems] == [
        "parameter 'one'",
        "parameter 'none'",
        "parameter 'eight'",
    ]


def test_large_strategies_are_read(tmp_path: Path) -> None:
    layouts = {f"{i % 8}-model.layers.{i}.feed_forward.w1.weight": (ROWS, COLUMNS)[i % 2] for i in range(100_000)}
    path = tmp_path / "x"
    path.write_bytes(strategy_bytes(layouts))
    assert [len(stage) for stage in read_strategy(path).stages] == [12_500] * 8
