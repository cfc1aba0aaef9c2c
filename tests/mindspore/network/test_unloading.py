"""Taking a method out of a live network, with what it trained or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore
import ml_dtypes
import numpy as np
import pytest
from mindformers.modules.layers import Linear
from mindformers.pet import get_pet_model as theirs
from mindspore import Tensor, nn
from mindspore.common.initializer import Normal
from networks import MODELS, PlainNet, PrefixNet, changed, output, seed, train, use_mode, values

from ckpt_tools import merge, open_checkpoint
from surgery.errors import MismatchError, NonFiniteError
from surgery.network import get_pet_model, merge_and_unload, unload
from surgery.network.arrays import array_of

LORA = {
    "pet_type": "lora",
    "lora_rank": 4,
    "lora_alpha": 6,
    "lora_dropout": 0.0,
    "target_modules": r".*\.dense|.*\.mlp\.\d",
}
INPUTS = MODELS["plain"].inputs


def trained(network: nn.Cell, config: dict[str, Any] = LORA) -> nn.Cell:
    tuned = get_pet_model(network, config)
    train(tuned, INPUTS)
    return tuned


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def assert_merged_as_by_the_command(network: nn.Cell, folder: Path, alpha: float) -> None:
    """Fold in the network, and by `pet-merge` in its checkpoint: the same tensors, bit for bit."""
    mindspore.save_checkpoint(network, str(folder / "tuned.ckpt"))
    merge(folder / "tuned.ckpt", output=folder / "merged.ckpt", alpha=alpha)
    merge_and_unload(network)
    merged = open_checkpoint(folder / "merged.ckpt").tensors
    now = {parameter.name: array_of(parameter) for parameter in network.get_parameters()}
    assert now.keys() == merged.keys()
    assert {name for name, array in now.items() if bits(array) != bits(merged[name].read_all())} == set()


def test_folding_gives_the_bits_of_pet_merge(tmp_path: Path) -> None:
    assert_merged_as_by_the_command(trained(PlainNet()), tmp_path, 6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("transpose_b", [True, False])
def test_folding_does_so_for_other_types_and_weights_that_lie_the_other_way(
    tmp_path: Path, dtype: str, transpose_b: bool
) -> None:
    kind = getattr(mindspore, dtype)

    class Net(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.dense = Linear(16, 24, weight_init=Normal(0.5), transpose_b=transpose_b, param_init_type=kind)

    network = get_pet_model(Net(), {**LORA, "target_modules": "dense"})
    random = np.random.default_rng(0)
    for parameter in network.trainable_params():
        parameter.set_data(Tensor(random.normal(size=parameter.shape).astype(np.float32), kind))
    before = array_of(network.dense.weight)
    if transpose_b:
        assert_merged_as_by_the_command(network, tmp_path, 6)
        return
    a, b = (array_of(one).astype(np.float32) for one in network.trainable_params())
    merge_and_unload(network)
    expected = (before.astype(np.float32) + 1.5 * (b @ a).T).astype(before.dtype)
    np.testing.assert_allclose(
        array_of(network.dense.weight).astype(np.float32), expected.astype(np.float32), rtol=2.0**-7
    )
    assert expected.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_a_folded_network_computes_what_the_tuned_one_did_by_plain_layers(mode: str) -> None:
    use_mode(mode)
    network = PlainNet()
    layers = {path: cell for path, cell in network.cells_and_names() if isinstance(cell, nn.Dense)}
    base = output(network, INPUTS)
    tuned = output(trained(network), INPUTS)
    assert merge_and_unload(network) is network
    assert {path: cell for path, cell in network.cells_and_names() if isinstance(cell, nn.Dense)} == layers
    np.testing.assert_allclose(output(network, INPUTS), tuned, rtol=0, atol=1e-5)
    assert np.abs(tuned - base).max() > 1e-2


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("pet_type", ["lora", "adapter", "low_rank_adapter"])
def test_taking_a_method_out_gives_the_base_back(pet_type: str, mode: str) -> None:
    use_mode(mode)
    seed()
    network = PlainNet()
    before, base = values(network), output(network, INPUTS)
    trained(network, {"pet_type": pet_type, "target_modules": LORA["target_modules"]})
    assert unload(network) is network
    assert values(network).keys() == before.keys()
    assert changed(before, network) == set()
    assert output(network, INPUTS).tobytes() == base.tobytes()


def test_taking_a_prefix_out_gives_the_network_within() -> None:
    network = PrefixNet()
    assert unload(get_pet_model(network, {"pet_type": "ptuning2", "pre_seq_len": 4})) is network


def test_what_cannot_be_folded_is_refused_with_the_alternative() -> None:
    network = get_pet_model(PlainNet(), {"pet_type": "adapter", "target_modules": r".*\.dense"})
    with pytest.raises(MismatchError, match=r"blocks\.0\.dense.*no weight can hold.*Use unload"):
        merge_and_unload(network)
    with pytest.raises(MismatchError, match="no LoRA to fold"):
        merge_and_unload(PlainNet())
    with pytest.raises(MismatchError, match="BitFit trains the network's own biases"):
        unload(get_pet_model(PlainNet(), {"pet_type": "bitfit"}))


def test_a_weight_that_would_overflow_is_refused_and_nothing_is_changed() -> None:
    network = trained(PlainNet())
    last = network.blocks[1].mlp[1]
    for parameter in (last.mindpet_delta_lora_a, last.mindpet_delta_lora_b):
        parameter.set_data(Tensor(np.full(parameter.shape, 1e20, np.float32)))
    before = values(network)
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.mlp\.1"):
        merge_and_unload(network)
    assert changed(before, network) == set()


@pytest.mark.parametrize(("rule", "refused"), [("first|second", ["first", "second"]), ("second", ["second"])])
def test_a_weight_of_two_cells_is_refused_and_nothing_is_changed(rule: str, refused: list[str]) -> None:
    class Tied(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Dense(16, 16), nn.Dense(16, 16)
            self.second.weight = self.first.weight

    network = get_pet_model(Tied(), {**LORA, "target_modules": rule})
    for parameter in network.trainable_params():
        parameter.set_data(Tensor(np.ones(parameter.shape, np.float32)))
    before = values(network)
    with pytest.raises(MismatchError) as caught:
        merge_and_unload(network)
    assert sorted(problem.where for problem in caught.value.problems) == refused
    assert changed(before, network) == set()


@pytest.mark.parametrize("compute_dtype", ["float32", "float16"])
def test_what_mindformers_put_in_is_folded_too(compute_dtype: str) -> None:
    model = MODELS["llama"]
    seed()
    network = theirs(model.make(), {**LORA, "target_modules": model.rule, "compute_dtype": compute_dtype})
    train(network, model.training)
    tuned = output(network, model.inputs)
    merge_and_unload(network)
    assert not any("lora" in parameter.name for parameter in network.get_parameters())
    within = 1e-5 if compute_dtype == "float32" else 2e-3
    np.testing.assert_allclose(output(network, model.inputs), tuned, rtol=0, atol=within)
