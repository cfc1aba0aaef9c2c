"""Strategies of a layer that is replaced go on to the operators of the cell that takes its place."""

from __future__ import annotations

from typing import Any

import mindspore
import pytest
from mindformers.modules.layers import Linear
from mindformers.pet.pet_config import LoraConfig
from mindformers.pet.tuners.lora_adapter import recursive_replace_dense_cell
from mindspore import nn

from surgery.network import AdapterAdapter, LoraAdapter, LowRankAdapter

DP, MP = 2, 4
COLUMN = ((DP, 1), (MP, 1))  # input (rows, in), weight (out, in): the output is cut
ROW = ((DP, MP), (1, MP))  # the input is cut


class Net(nn.Cell):
    def __init__(self, strategy: Any, *, transpose_b: bool = True) -> None:
        super().__init__()
        self.dense = Linear(16, 32, transpose_b=transpose_b, compute_dtype=mindspore.float32)
        outer = strategy[1][0] if transpose_b else strategy[1][1]
        self.dense.shard(strategy_matmul=strategy, strategy_bias=((DP, outer), (outer,)))


@pytest.fixture(autouse=True)
def in_parallel() -> None:
    mindspore.set_auto_parallel_context(parallel_mode="semi_auto_parallel")


def strategies(cell: Any, *names: str) -> dict[str, Any]:
    found = {}
    for name in names:
        operator = cell
        for part in name.split("."):
            operator = getattr(operator, part)
        found[name] = operator.in_strategy
    return found


LORA_OPERATORS = ("matmul", "bias_add", "lora_dropout.dropout", "lora_a_matmul", "lora_b_matmul", "mul", "add")


@pytest.mark.parametrize("strategy", [COLUMN, ROW])
def test_lora_is_cut_as_mindformers_cuts_it(strategy: Any) -> None:
    theirs = recursive_replace_dense_cell(Net(strategy), LoraConfig(target_modules="dense"))
    ours = LoraAdapter.get_pet_model(Net(strategy), {"target_modules": "dense"})
    assert strategies(ours.dense, *LORA_OPERATORS) == strategies(theirs.dense, *LORA_OPERATORS)


def test_lora_of_a_weight_that_lies_the_other_way_is_cut_by_the_axes_that_a_has() -> None:
    ours = LoraAdapter.get_pet_model(Net(((DP, MP), (MP, 1)), transpose_b=False), {"target_modules": "dense"})
    cuts = strategies(ours.dense, *LORA_OPERATORS)
    assert cuts["lora_a_matmul"] == ((DP, MP), (1, MP))
    theirs = recursive_replace_dense_cell(
        Net(((DP, MP), (MP, 1)), transpose_b=False), LoraConfig(target_modules="dense")
    )
    # Theirs cuts A's rank by the parts of the input, of which A's other axis is left whole.
    assert theirs.dense.lora_a_matmul.in_strategy == ((DP, MP), (MP, 1))


@pytest.mark.parametrize(("strategy", "outer"), [(COLUMN, MP), (ROW, 1)])
def test_bottlenecks_take_the_layers_output_and_give_it_back_as_it_was_cut(strategy: Any, outer: int) -> None:
    block = "mindpet_delta_adapter.mindpet_delta_adapter_block.mindpet_delta_adapter"
    network = AdapterAdapter.get_pet_model(Net(strategy), {"target_modules": "dense", "bottleneck_size": 8})
    cuts = strategies(
        network.dense, f"{block}_down_sampler.matmul", f"{block}_up_sampler.matmul", f"{block}_up_sampler.bias_add"
    )
    down, up, bias = cuts.values()
    assert down == ((DP, outer), (1, outer))
    assert up == ((DP, 1), (outer, 1))
    assert bias == ((DP, outer), (outer,))
    assert network.dense.mindpet_delta_adapter.residual_add.in_strategy == ((DP, outer), (DP, outer))
    assert network.dense.matmul.in_strategy == strategy


@pytest.mark.parametrize(("strategy", "outer"), [(COLUMN, MP), (ROW, 1)])
def test_low_rank_adapters_do_likewise_with_products_for_weights(strategy: Any, outer: int) -> None:
    network = LowRankAdapter.get_pet_model(Net(strategy), {"target_modules": "dense"})
    layer = network.dense.mindpet_delta_low_rank_adapter
    down, up = layer.mindpet_delta_low_rank_adapter_down_sampler, layer.mindpet_delta_low_rank_adapter_up_sampler
    assert down.matmul_weight.in_strategy == ((outer, 1), (1, 1))
    assert down.matmul_input.in_strategy == ((DP, outer), (outer, 1))
    assert up.matmul_weight.in_strategy == ((1, 1), (1, outer))
    assert up.matmul_input.in_strategy == ((DP, 1), (1, outer))
    assert layer.residual_add.in_strategy == ((DP, outer), (DP, outer))


def test_a_layer_without_a_strategy_gives_none() -> None:
    class Plain(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Dense(4, 4)

    network = LoraAdapter.get_pet_model(Plain(), {"target_modules": "dense"})
    assert getattr(network.dense.lora_a_matmul, "in_strategy", None) is None
