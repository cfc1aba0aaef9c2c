"""Strategy files that are written here, read by MindSpore's own classes, and used by its own tools."""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np
import pytest
from merge_cases import llama, read, save
from mindspore.train.node_strategy_pb2 import ParallelStrategyMap
from mindspore_strategies import mindspore_bytes
from rank_folders import strategy_of

from ckpt_tools import inject
from ckpt_tools.layout import Layout
from ckpt_tools.layout.strategy_writing import strategy_file

LAYOUTS = {
    "a": Layout((2, 1, 4), ((0,), ())),
    "b": Layout((2, 4), ((1, 0), ())),
    "c": Layout((2, 4), ((1, 0),)),
    "d": Layout((2, 4), ((0,), ()), shard_step=4, shard_size=-1),
    "e": Layout((8,), ((),)),
}


def test_mindspores_classes_read_what_they_would_have_written() -> None:
    ours, theirs = ParallelStrategyMap(), ParallelStrategyMap()
    ours.ParseFromString(strategy_file([LAYOUTS]))
    theirs.ParseFromString(mindspore_bytes(LAYOUTS))
    for one, other in zip(ours.parallel_layout_item, theirs.parallel_layout_item, strict=True):
        assert one.param_name == other.param_name
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert [item.parallel_strategys.stage for item in ours.parallel_strategy_item] == [0]


@pytest.mark.parametrize("rule", [".*wq|.*w2", r".*\.(wo|w1)"])
def test_mindspore_joins_injected_ranks_by_the_strategy_beside_them(tmp_path: Path, rule: str) -> None:
    weights = llama("fp32")
    layouts = {
        name: Layout((2, 4), (((), (0,)) if ".wo." in name or ".w2." in name else ((0,), ())))
        if array.ndim == 2
        else Layout((2, 4), ((),))
        for name, array in weights.items()
    }
    save(tmp_path / "base.ckpt", weights)
    (tmp_path / "dst.ckpt").write_bytes(strategy_file(strategy_of(layouts).stages))
    config = {"pet_type": "adapter", "bottleneck_size": 3, "target_modules": rule}
    inject(tmp_path / "base.ckpt", config=config, output=tmp_path / "whole.ckpt")
    inject(tmp_path / "base.ckpt", config=config, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt")
    mindspore.transform_checkpoints(
        str(tmp_path / "ranks"), str(tmp_path / "joined"), "x_", str(tmp_path / "ranks" / "strategy.ckpt"), None
    )
    (joined,) = (tmp_path / "joined").rglob("*.ckpt")
    loaded = mindspore.load_checkpoint(str(joined))
    expected = read(tmp_path / "whole.ckpt")
    assert set(loaded) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name].asnumpy(), array)
