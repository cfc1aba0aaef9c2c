"""LoRA on the parallel core's linear layers, beside what MindFormers puts there. A CPU runs them in graph mode."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from mindformers.pet.pet_config import LoraConfig
from mindformers.pet.tuners.lora_adapter import recursive_replace_dense_cell
from mindspore import nn
from networks import MODELS, ParallelCoreNet, changed, output, seed, train, use_mode, values

from surgery.errors import MismatchError
from surgery.network import get_pet_model, merge_and_unload

CONFIG = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": "linear_.*"}
INPUTS = MODELS["parallel_core"].inputs


def test_cells_names_and_shapes_are_mindformers() -> None:
    ours = get_pet_model(ParallelCoreNet(), CONFIG)
    options = {key: value for key, value in CONFIG.items() if key != "pet_type"}
    theirs = recursive_replace_dense_cell(ParallelCoreNet(), LoraConfig(**options))
    theirs.update_parameters_name()
    facts = [{p.name: (tuple(p.shape), str(p.dtype)) for p in net.get_parameters()} for net in (ours, theirs)]
    assert facts[0] == facts[1]
    assert type(ours.linear_qkv) is type(theirs.linear_qkv)
    assert type(ours.linear_proj) is type(theirs.linear_proj)


def test_the_weights_are_the_networks_own_where_mindformers_makes_others() -> None:
    network = ParallelCoreNet()
    weights = {parameter.name: parameter for parameter in network.get_parameters()}
    theirs = recursive_replace_dense_cell(copy.deepcopy(network), LoraConfig(target_modules="linear_.*"))
    same = theirs.linear_qkv.weight.asnumpy() == network.linear_qkv.weight.asnumpy()
    assert not same.all()
    get_pet_model(network, CONFIG)
    now = {parameter.name: parameter for parameter in network.get_parameters()}
    assert all(now[name] is parameter for name, parameter in weights.items())


def test_fresh_trained_and_folded_it_computes_what_it_should() -> None:
    use_mode("graph")
    seed()
    network = ParallelCoreNet()
    base = output(network, INPUTS)
    layers = [network.linear_qkv, network.linear_proj]
    get_pet_model(network, CONFIG)
    assert output(network, INPUTS).tobytes() == base.tobytes()
    before = values(network)
    train(network, INPUTS)
    assert changed(before, network) == {parameter.name for parameter in network.trainable_params()}
    tuned = output(network, INPUTS)
    merge_and_unload(network)
    assert [network.linear_qkv, network.linear_proj] == layers
    np.testing.assert_allclose(output(network, INPUTS), tuned, rtol=0, atol=1e-5)
    assert np.abs(tuned - base).max() > 1e-3


def test_what_mindformers_put_in_cannot_be_hung_back() -> None:
    theirs = recursive_replace_dense_cell(ParallelCoreNet(), LoraConfig(target_modules="linear_.*"))
    with pytest.raises(MismatchError, match=r"linear_qkv: .*MindFormers put there.*Use pet-merge"):
        merge_and_unload(theirs)


def test_strategies_are_those_that_mindformers_gives() -> None:
    ours = get_pet_model(ParallelCoreNet(), CONFIG)
    theirs = recursive_replace_dense_cell(ParallelCoreNet(), LoraConfig(target_modules="linear_.*"))
    for name in ("linear_qkv", "linear_proj"):
        cells: list[nn.Cell] = [getattr(network, name) for network in (ours, theirs)]
        cuts = [[getattr(cell.mul, "in_strategy", None), getattr(cell.add, "in_strategy", None)] for cell in cells]
        assert cuts[0] == cuts[1]
        assert cuts[0][0] is not None
