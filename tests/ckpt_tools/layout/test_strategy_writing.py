"""Strategy files that are written: byte by byte those of MindSpore's message, and read back as what they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from layout_cases import layouts
from strategy_bytes import layout_item

from ckpt_tools.layout import Layout, read_strategy
from ckpt_tools.layout.strategy_writing import strategy_file

PLAIN = {
    "w": Layout((2, 1, 4), ((0,), ())),
    "nested": Layout((2, 4), ((1, 0), ())),
    "vector": Layout((2, 4), ((1, 0),)),
    "sharded": Layout((2, 4), ((0,), ()), shard_step=4, shard_size=-1),
    "uneven": Layout((2,), ((0,), ()), split_shape=(3, 5)),
    "whole": Layout((8,), ((),)),
    "scalar": Layout((8,), ()),
}


def read_back(tmp_path: Path, *stages: dict[str, Layout]) -> tuple[dict[str, Layout], ...]:
    (tmp_path / "strategy.ckpt").write_bytes(strategy_file(stages))
    return tuple(dict(stage) for stage in read_strategy(tmp_path / "strategy.ckpt").stages)


def test_each_layout_is_the_message_that_mindspore_writes() -> None:
    data = strategy_file([PLAIN])
    assert all(layout_item(name, layout) in data for name, layout in PLAIN.items())


def test_layouts_of_one_stage_are_read_back(tmp_path: Path) -> None:
    eight = {name: layout for name, layout in PLAIN.items() if layout.devices == 8}
    assert read_back(tmp_path, eight) == (eight,)


def test_stages_are_read_back_in_their_order(tmp_path: Path) -> None:
    first, second = {"a": PLAIN["w"], "b-c": PLAIN["whole"]}, {"b-c": PLAIN["w"], "d": PLAIN["nested"]}
    assert read_back(tmp_path, first, second) == (first, second)


@given(st.data())
def test_any_layout_is_read_back(data: st.DataObject) -> None:
    layout, _ = data.draw(layouts(data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 4, 8]))))
    name = data.draw(st.text(st.characters(codec="utf-8", exclude_characters="-"), min_size=1, max_size=20))
    with tempfile.TemporaryDirectory() as folder:
        assert read_back(Path(folder), {name: layout}) == ({name: layout},)
