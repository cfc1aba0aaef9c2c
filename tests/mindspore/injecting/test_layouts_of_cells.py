"""New parameters are cut as the operators of MindFormers' and this project's cells cut their inputs."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
import pytest
from mindformers.modules.layers import Linear
from mindformers.pet.pet_config import LoraConfig
from mindformers.pet.tuners.lora_adapter import recursive_replace_dense_cell
from mindspore import nn
from rank_folders import strategy_of

from ckpt_tools.injecting.layouts import AddedTo, with_added
from ckpt_tools.layout import Layout
from ckpt_tools.layout.slices import regions_of
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.views import Constant
from surgery.methods import TargetLayer, method_for
from surgery.network import AdapterAdapter, LowRankAdapter
from surgery.pet_config import parse_pet_config

DP, MP = 2, 4
COLUMN = ((DP, 1), (MP, 1))  # input (rows, in), weight (out, in): the output is cut
ROW = ((DP, MP), (1, MP))
WEIGHT = {COLUMN: Layout((DP, 1, MP), ((0,), ())), ROW: Layout((DP, 1, MP), ((), (0,)))}
IN, OUT = 16, 32


class Net(nn.Cell):
    def __init__(self, strategy: Any) -> None:
        super().__init__()
        self.dense = Linear(IN, OUT, compute_dtype=mindspore.float32)
        outer = strategy[1][0]
        self.dense.shard(strategy_matmul=strategy, strategy_bias=((DP, outer), (outer,)))


@pytest.fixture(autouse=True)
def in_parallel(in_a_folder_of_its_own: None) -> None:
    mindspore.set_auto_parallel_context(parallel_mode="semi_auto_parallel")


def parts_of(config: dict[str, Any], strategy: Any) -> dict[str, tuple[int, ...]]:
    """Name of each new parameter to the parts in which a strategy file cuts it."""
    parsed = parse_pet_config(config)
    layer = TargetLayer("dense", IN, OUT)
    added = method_for(parsed).add_parameters(parsed, (layer,), None)
    weights = {"dense.weight": Constant(np.zeros((OUT, IN), np.float32), BY_NAME["fp32"])}
    cut = strategy_of({"dense.weight": WEIGHT[strategy]})
    layouts = with_added(cut, tuple(AddedTo(one, layer) for one in added), weights).stages[0]
    return {one.name.removeprefix("dense."): regions_of(layouts[one.name], one.shape)[0] for one in added}


@pytest.mark.parametrize("strategy", [COLUMN, ROW])
def test_lora_is_cut_as_mindformers_own_replacement_is(strategy: Any) -> None:
    cell = recursive_replace_dense_cell(Net(strategy), LoraConfig(target_modules="dense")).dense
    parts = parts_of({"pet_type": "lora", "target_modules": "dense"}, strategy)
    assert parts == {
        "mindpet_delta_lora_a": tuple(cell.lora_a_matmul.in_strategy[1]),
        "mindpet_delta_lora_b": tuple(cell.lora_b_matmul.in_strategy[1]),
    }


@pytest.mark.parametrize("strategy", [COLUMN, ROW])
def test_bottlenecks_are_cut_as_their_operators_are(strategy: Any) -> None:
    config = {"pet_type": "adapter", "target_modules": "dense", "bottleneck_size": 8}
    cell = AdapterAdapter.get_pet_model(Net(strategy), config).dense
    block = cell.mindpet_delta_adapter.mindpet_delta_adapter_block
    stem = "mindpet_delta_adapter.mindpet_delta_adapter_block.mindpet_delta_adapter"
    parts = parts_of(config, strategy)
    for half in ("down_sampler", "up_sampler"):
        operators = getattr(block, f"mindpet_delta_adapter_{half}")
        assert parts[f"{stem}_{half}.weight"] == tuple(operators.matmul.in_strategy[1])
        assert parts[f"{stem}_{half}.bias"] == tuple(operators.bias_add.in_strategy[1])


@pytest.mark.parametrize("strategy", [COLUMN, ROW])
def test_low_rank_bottlenecks_are_cut_as_their_operators_are(strategy: Any) -> None:
    config = {"pet_type": "low_rank_adapter", "target_modules": "dense", "low_rank_size": 2}
    cell = LowRankAdapter.get_pet_model(Net(strategy), config).dense
    stem = "mindpet_delta_low_rank_adapter"
    parts = parts_of(config, strategy)
    for half in ("down_sampler", "up_sampler"):
        operators = getattr(cell.mindpet_delta_low_rank_adapter, f"{stem}_{half}")
        left, right = operators.matmul_weight.in_strategy
        assert parts[f"{stem}.{stem}_{half}.{stem}_weight_left"] == tuple(left)
        assert parts[f"{stem}.{stem}_{half}.{stem}_weight_right"] == tuple(right)
        assert parts[f"{stem}.{stem}_{half}.bias"] == tuple(operators.bias_add.in_strategy[1])
