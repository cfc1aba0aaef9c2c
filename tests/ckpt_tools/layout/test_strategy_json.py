"""Strategies in JSON: the same facts as in protobuf, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import examples
from strategy_bytes import layout_json, strategy_bytes, strategy_json
from strategy_cases import is_sound, layouts_by_name, refusal, strategy_or_refusal

from ckpt_tools.layout import Layout, read_strategy

PLAIN = Layout((2, 4), ((0,), ()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.json"


def read(path: Path, data: bytes) -> dict[str, Layout]:
    """The layouts of the one stage."""
    path.write_bytes(data)
    (stage,) = read_strategy(path).stages
    return dict(stage)


def with_layout(**members: object) -> bytes:
    """A strategy of one parameter, "w", whose layout has these members instead of sound ones; None leaves one out."""
    layout = {**layout_json(PLAIN), **members}
    return with_layouts({"w": {key: value for key, value in layout.items() if value is not None}})


def with_layouts(layouts: object) -> bytes:
    return json.dumps({"current_stage": 1, "parallel_strategy_item": {}, "parallel_layout_item": layouts}).encode()


@settings(max_examples=examples(60), deadline=None)
@given(layouts=layouts_by_name())
def test_json_says_the_same_as_protobuf(tmp_path_factory: pytest.TempPathFactory, layouts: dict[str, Layout]) -> None:
    folder = tmp_path_factory.getbasetemp()
    from_json = read(folder / "same.json", strategy_json(layouts))
    assert from_json == read(folder / "same.ckpt", strategy_bytes(layouts)) == layouts
    assert list(from_json) == list(layouts)


def test_members_that_are_not_written_for_even_cuts_may_be_missing(path: Path) -> None:
    assert read(path, with_layout(param_split_shape=None, indices_offset=None)) == {"w": PLAIN}
    assert read(path, with_layout(field=None, opt_weight_shard_step=None, opt_weight_shard_size=None)) == {"w": PLAIN}


def test_a_tensor_shape_as_the_compiler_adds_it_is_passed_over(path: Path) -> None:
    assert read(path, with_layout(tensor_shape=[8, 8])) == {"w": PLAIN}


def test_nested_maps_may_hold_numbers_and_lists(path: Path) -> None:
    layout = read(path, with_layout(dev_matrix=[2, 2, 2], tensor_map=[[1, 0], -1, 2, [-1]]))["w"]
    assert layout.tensor_map == ((1, 0), (), (2,), ())


def test_the_padding_of_a_protobuf_message_may_have_come_along(path: Path) -> None:
    assert read(path, with_layout(tensor_map=[[1, 0], []]))["w"].tensor_map == ((1, 0),)


@pytest.mark.parametrize("prefix", [b"\n", b" \r\n\t", b""])
def test_blanks_in_front_do_not_hide_json(path: Path, prefix: bytes) -> None:
    data = json.dumps(json.loads(strategy_json({"w": PLAIN})), indent=1).encode()
    assert read(path, prefix + data) == {"w": PLAIN}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (with_layout(dev_matrix=None), "without dev_matrix"),
        (with_layout(tensor_map=None), "without tensor_map"),
        (with_layout(dev_matrix=[2.0, 4]), "parameter 'w', dev_matrix: expected a list"),
        (with_layout(dev_matrix=[True, 4]), "whole numbers"),
        (with_layout(dev_matrix="24"), "whole numbers"),
        (with_layout(dev_matrix=[10**4000]), "whole numbers"),
        (with_layout(dev_matrix=[1] * 33), "at most 32 whole numbers"),
        (with_layout(tensor_map=[[[0]]]), "whole numbers"),
        (with_layout(tensor_map=[-1] * 40), "at most 32 axes"),
        (with_layout(tensor_map={"0": 1}), "at most 32 axes"),
        (with_layout(tensor_map=[[], [0]]), "an empty list in front of others"),
        (with_layout(opt_weight_shard_size="8"), "parameter 'w', opt_weight_shard_size: expected a whole number"),
        (with_layout(param_split_shape=3), "param_split_shape: expected a list"),
        (with_layouts({"w": [1, 2]}), "parameter 'w': expected a JSON object"),
        (with_layouts([]), "parallel_layout_item: expected a JSON object"),
        (with_layouts({"": layout_json(PLAIN)}), "an empty name"),
        (
            b'{"parallel_strategy_item": 7, "parallel_layout_item": {}}',
            "parallel_strategy_item: expected a JSON object",
        ),
        (b'{"parallel_strategy_item": {"op": {"stage": "0"}}}', "'op', stage: expected a whole number"),
        (b'{"parallel_strategy_item": {"op": {"stage": -1}}}', "stage -1"),
        (b'{"parallel_layout_item": {"w": {}, "w": {}}}', "the key 'w' twice"),
        (strategy_json({"w": PLAIN})[:-20], "broken JSON"),
        (strategy_json({"w": PLAIN}) + b"{}", "broken JSON"),
        (b"\xef\xbb\xbf" + strategy_json({"w": PLAIN}), "BOM"),
        (b'{"parallel_layout_item":' + b"[" * 100_000, "nested too deep"),
        (with_layout().replace(b"[0, -1]", b"[" * 90_000 + b"]" * 90_000), "nested too deep"),
    ],
)
def test_what_breaks_the_format_is_refused(path: Path, data: bytes, says: str) -> None:
    assert says in str(refusal(path, data))


def test_all_problems_of_a_file_come_at_once(path: Path) -> None:
    layouts = {"a": 1, "b": layout_json(PLAIN), "c": layout_json(Layout((2,), ((1,),)))}
    document = {"parallel_strategy_item": {"op": 3}, "parallel_layout_item": layouts}
    error = refusal(path, json.dumps(document).encode())
    assert [problem.where.rsplit(", ", 1)[1] for problem in error.problems] == [
        "'op'",
        "parameter 'a'",
        "parameter 'c'",
    ]


@settings(max_examples=examples(300), deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    character=st.sampled_from(list('{}[]",:-0 9e.\\\x00\xff')),
    cut=st.floats(0.5, 1.5),
)
def test_damage_ends_in_an_error_of_this_project_or_in_a_sound_strategy(
    tmp_path_factory: pytest.TempPathFactory, place: float, character: str, cut: float
) -> None:
    data = bytearray(strategy_json({"model.a": Layout((2, 4), ((1, 0), ()), 1, -1, (3, 4)), "1-c": PLAIN}))
    data[int(place * len(data))] = ord(character)
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(data[: round(cut * len(data))])
    strategy = strategy_or_refusal(path)
    assert strategy is None or is_sound(strategy)
