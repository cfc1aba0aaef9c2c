"""What no layout can be, in either format: each is refused with the parameter's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from strategy_bytes import strategy_bytes, strategy_json
from strategy_cases import refusal

from ckpt_tools.layout import Layout, read_strategy, strategy_facts

WRITERS = [strategy_bytes, strategy_json]
Writer = Callable[[Mapping[str, Layout]], bytes]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (Layout((2, 4), ((2,),)), "expected -1 or an axis of the device matrix [2, 4]"),
        (Layout((2, 4), ((-2,),)), "a tensor map with the device axis -2"),
        (Layout((), ((0,),)), "the device axis 0"),
        (Layout((2, 4), ((1,), (1,))), "uses the device axis 1 twice"),
        (Layout((2, 4), ((0, 0),)), "uses the device axis 0 twice"),
        (Layout((2, 0), ((),)), "the device matrix [2, 0]"),
        (Layout((2, -3), ((),)), "the device matrix [2, -3]"),
        (Layout((2**11, 2**10), ((),)), "at most 1,048,576 devices"),
        (Layout((2**62, 2**62), ((),)), "at most 1,048,576 devices"),
        (Layout((4,), ((),), shard_step=-1), "opt_weight_shard_step -1"),
        (Layout((4,), ((),), field=2**40), "field 1099511627776"),
        (Layout((4,), ((),), shard_step=2**30), "opt_weight_shard_step 1073741824"),
        (Layout((4,), ((),), shard_step=1, shard_size=-2), "opt_weight_shard_size -2"),
        (Layout((4,), ((),), shard_step=1, shard_size=2**30), "opt_weight_shard_size 1073741824"),
        (Layout((4,), ((0,),), split_shape=(3, 0, 1, 1)), "param_split_shape with a length below 1"),
        (Layout((4,), ((0,),), split_shape=(3, -1, 1, 1)), "param_split_shape with a length below 1"),
    ],
)
def test_an_impossible_layout_is_refused(tmp_path: Path, write: Writer, layout: Layout, says: str) -> None:
    error = refusal(tmp_path / "x", write({"model.bad": layout, "model.good": Layout((4,), ((0,),))}))
    assert says in str(error)
    assert {problem.where.rsplit(", ", 1)[1] for problem in error.problems} == {"parameter 'model.bad'"}


@pytest.mark.parametrize("write", WRITERS)
def test_a_nested_map_beyond_its_matrix_is_told_why_and_what_to_do(tmp_path: Path, write: Writer) -> None:
    """As the compiler writes Layout((2, 4, 2), ("dp", "mp", "interleaved_parallel")) in protobuf."""
    text = str(refusal(tmp_path / "x", write({"w": Layout((2, 4), ((2, 0), (1,)))})))
    assert "MindSpore leaves device axes of size 1, and interleaved_parallel, out of the matrix" in text
    assert "save_file: NAME.json" in text


@pytest.mark.parametrize("write", WRITERS)
def test_a_layout_with_several_faults_has_them_all_reported(tmp_path: Path, write: Writer) -> None:
    layout = Layout((0, 2), ((5,), (1,), (1,)), -4, -5, (0,))
    assert len(refusal(tmp_path / "x", write({"w": layout})).problems) == 6


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "layout",
    [
        Layout((), ()),
        Layout((1,), ((),)),
        Layout((1, 1, 1), ((2,), (0,))),
        Layout((2**20,), ((0,),)),
        Layout((8,), ((),), 1, -1),
        Layout((8,), ((),), 0, 8),
        Layout((2,) * 20, tuple((axis,) for axis in range(20))),
    ],
)
def test_a_layout_at_the_edge_is_read(tmp_path: Path, write: Writer, layout: Layout) -> None:
    path = tmp_path / "x"
    path.write_bytes(write({"w": layout}))
    strategy = read_strategy(path)
    assert strategy.stages == ({"w": layout},)
    assert strategy.stage_devices == layout.devices


@pytest.mark.parametrize("write", WRITERS)
def test_odd_names_are_names(tmp_path: Path, write: Writer) -> None:
    layouts = dict.fromkeys(
        ["../../x", "a\0b", "-", "7", "-1-x", "a-1-b", "x" * 60_000, "\u202egnp", "\n"], Layout((4,), ())
    )
    path = tmp_path / "x"
    path.write_bytes(write(layouts))
    assert read_strategy(path).stages == (layouts,)


@pytest.mark.parametrize("write", WRITERS)
def test_names_in_messages_are_short_and_escaped(tmp_path: Path, write: Writer) -> None:
    error = refusal(tmp_path / "x", write({"\x1b[2J\u202e" + "y" * 10_000: Layout((4,), ((3,),))}))
    assert "\x1b" not in str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("limit", ["_MAX_LAYOUTS", "_MAX_ALL_NAME_CHARACTERS"])
def test_more_parameters_than_any_model_has_are_refused(
    tmp_path: Path, write: Writer, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts = dict.fromkeys("abcd", Layout((4,), ()))
    monkeypatch.setattr(strategy_facts, limit, 3)
    assert "4 layouts, with 4 characters of names" in str(refusal(tmp_path / "x", write(layouts)))
    monkeypatch.setattr(strategy_facts, limit, 4)
    assert read_strategy(tmp_path / "x").stages == (layouts,)
