"""MindSpore reads the strategy files that the example writes, and transforms its run to the same weights."""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np
import pytest
from mindspore.parallel._parallel_serialization import _build_searched_strategy, _convert_to_list

from ckpt_tools.layout import read_strategy
from examples.train_on_eight import main, model


@pytest.mark.parametrize("file", ["strategy/ckpt_strategy_rank_3.ckpt", "infer.json"])
def test_mindspore_reads_the_layouts_that_are_meant(tmp_path: Path, file: str) -> None:
    main([str(tmp_path)])
    (layouts,) = read_strategy(tmp_path / file).stages
    found = _convert_to_list(_build_searched_strategy(str(tmp_path / file)))
    assert set(found) == set(layouts)
    for name, layout in layouts.items():
        matrix, tensor_map, _, _, step, size, _ = found[name]
        assert (tuple(matrix), step, size) == (layout.device_matrix, layout.shard_step, layout.shard_size)
        assert [() if axis == -1 else (axis,) for axis in tensor_map] == list(layout.tensor_map)


def test_mindspore_transforms_the_run_to_the_weights_it_was_made_of(tmp_path: Path) -> None:
    main([str(tmp_path)])
    for file in (tmp_path / "checkpoint").rglob("*-1_50.ckpt"):
        file.unlink()  # one file a rank, whichever of several MindSpore would take
    strategy = tmp_path / "strategy" / "ckpt_strategy_rank_0.ckpt"
    mindspore.transform_checkpoints(str(tmp_path / "checkpoint"), str(tmp_path / "out"), "whole_", str(strategy))
    whole = mindspore.load_checkpoint(str(tmp_path / "out" / "rank_0" / "whole_0.ckpt"))
    for name, array in model().items():
        assert np.array_equal(whole[name].asnumpy(), array), name
