"""An injected file has the parameters of the network that is built with the same configuration: all, and in order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindformers.pet import get_pet_model as theirs
from networks import MODELS, PrefixNet, output, seed, train, values

from ckpt_tools import inject, open_checkpoint, save_checkpoint
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.initialised import Initialised
from surgery.methods import Initialiser, method_of
from surgery.network import get_pet_model, load_ckpt
from surgery.network.freezing import facts_of
from surgery.network.initialisers import mindspore_initialiser
from surgery.pet_config import parse_pet_config

OF_LAYERS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0},
    "adapter": {"bottleneck_size": 6},
    "low_rank_adapter": {"reduction_factor": 2, "low_rank_size": 3},
}
PREFIXES: dict[str, dict[str, Any]] = {
    "ptuning2": {"pre_seq_len": 8, "prefix_projection": True, "projection_dim": 12, "dropout_prob": 0.0},
    "prefixtuning": {"prefix_token_num": 8, "mid_dim": 12, "dropout_rate": 0.0},
}
SHAPE = {"num_layers": 1, "num_heads": 4, "kv_channels": 16}
# The parallel core's layers have a module of their own; LLaMA has no biases, and only it takes prefixes on a CPU.
NETWORKS = [name for name in MODELS if name != "parallel_core"]
CASES = [
    *((name, pet_type) for name in NETWORKS for pet_type in OF_LAYERS),
    *(("llama", pet_type) for pet_type in PREFIXES),
    *((name, "bitfit") for name in NETWORKS if name != "llama"),
]

Facts = list[tuple[str, tuple[int, ...], str]]


def config_for(name: str, pet_type: str) -> dict[str, Any]:
    if pet_type in OF_LAYERS:
        return {"pet_type": pet_type, **OF_LAYERS[pet_type], "target_modules": MODELS[name].rule}
    return {"pet_type": pet_type, **PREFIXES.get(pet_type, {})}


def for_inject(config: Mapping[str, Any]) -> dict[str, Any]:
    """A prefix asks for the shape of the network, which a network knows itself."""
    return {**config, **(SHAPE if config["pet_type"] in PREFIXES else {})}


def saved(network: Any, path: str = "base.ckpt") -> Path:
    mindspore.save_checkpoint(network, path)
    return Path(path)


def facts_of_network(network: Any) -> Facts:
    return [(p.name, tuple(p.shape), facts_of(p).dtype) for p in network.get_parameters()]


def facts_of_file(path: Path) -> Facts:
    return [(name, one.shape, one.dtype.name) for name, one in open_checkpoint(path).tensors.items()]


@pytest.mark.parametrize(("name", "pet_type"), CASES, ids=["-".join(case) for case in CASES])
def test_names_shapes_types_and_order_are_the_networks(name: str, pet_type: str) -> None:
    config = config_for(name, pet_type)
    report = inject(saved(MODELS[name].make()), config=for_inject(config), output="injected.ckpt")
    network = get_pet_model(MODELS[name].make(), config)
    assert facts_of_file(Path("injected.ckpt")) == facts_of_network(network)
    trained = [parameter.name for parameter in network.trainable_params()]
    assert [one.name for one in report.added if one.is_trained] == [n for n in trained if "mindpet_delta" in n]
    assert report.trainable_parameters == len(trained)
    assert report.trainable_elements == sum(parameter.size for parameter in network.trainable_params())
    report_of_loading = load_ckpt(network, "injected.ckpt")
    assert not report_of_loading.kept
    assert not report_of_loading.cast
    assert mindspore.load_param_into_net(network, mindspore.load_checkpoint("injected.ckpt")) == ([], [])


@pytest.mark.parametrize("name", ["llama", "glm2"])
def test_loras_parameters_are_those_of_mindformers_own_get_pet_model(name: str) -> None:
    config = config_for(name, "lora")
    inject(saved(MODELS[name].make()), config=config, output="injected.ckpt")
    assert facts_of_file(Path("injected.ckpt")) == facts_of_network(theirs(MODELS[name].make(), copy.deepcopy(config)))


@pytest.mark.parametrize("pet_type", PREFIXES)
def test_prefixes_are_those_of_mindformers_own_get_pet_model(pet_type: str) -> None:
    config = config_for("llama", pet_type)
    inject(saved(MODELS["llama"].make()), config=for_inject(config), output="injected.ckpt")
    network = theirs(MODELS["llama"].make(), copy.deepcopy(config))
    assert facts_of_file(Path("injected.ckpt")) == facts_of_network(network)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_new_parameters_have_the_type_of_their_layer(dtype: str) -> None:
    arrays = {name: array.astype(BY_NAME[dtype].numpy) for name, array in values(MODELS["plain"].make()).items()}
    save_checkpoint("base.ckpt", arrays)
    report = inject("base.ckpt", config=config_for("plain", "lora"), output="injected.ckpt")
    assert {one.dtype for one in report.added} == {dtype}


def test_grouped_query_attention_has_a_prefix_of_its_keys_heads() -> None:
    network = PrefixNet()
    config = {"pet_type": "ptuning2", **PREFIXES["ptuning2"]}
    run = {
        "model": {
            "model_config": {
                "num_layers": 1,
                "num_heads": 4,
                "n_kv_heads": 2,
                "hidden_size": 16,
                "pet_config": config,
            }
        }
    }
    inject(saved(network), config=run, output="injected.ckpt")
    assert facts_of_file(Path("injected.ckpt")) == facts_of_network(get_pet_model(PrefixNet(), config))


@pytest.mark.parametrize(("name", "pet_type"), [("llama", "lora"), ("glm2", "lora"), ("plain", "adapter")])
def test_an_injected_network_computes_what_the_base_does_and_trains(name: str, pet_type: str) -> None:
    model, config = MODELS[name], config_for(name, pet_type)
    seed()
    base = model.make()
    before = output(base, model.inputs)
    inject(saved(base), config=config, output="injected.ckpt")
    network = get_pet_model(model.make(), config)
    load_ckpt(network, "injected.ckpt")
    if pet_type == "lora":  # B is zero
        assert output(network, model.inputs).tobytes() == before.tobytes()
    losses = train(network, model.training, 8)
    assert losses[-1] < losses[0]


KINDS = [Initialiser("he_uniform", 5**0.5), Initialiser("he_uniform", 0.0), Initialiser("xavier_uniform")]
KINDS += [Initialiser("uniform", 0.3), Initialiser("normal", 0.01), Initialiser("zeros"), Initialiser("ones")]


@pytest.mark.parametrize("initialiser", KINDS, ids=lambda one: f"{one.kind}-{one.scale:g}")
def test_values_are_spread_as_mindspores_are(initialiser: Initialiser) -> None:
    shape = (400, 250)
    ours = Initialised("w", 0, initialiser.kind, initialiser.scale, BY_NAME["fp32"], shape).read_all()
    kind = mindspore_initialiser(initialiser)
    seed()
    drawn = mindspore.common.initializer.initializer(kind, shape, mindspore.float32).init_data().asnumpy()
    # The standard deviation of a standard deviation of 100,000 draws is 0.22 % of it.
    np.testing.assert_allclose(ours.std(), drawn.std(), rtol=0.015)
    np.testing.assert_allclose(ours.mean(), drawn.mean(), atol=0.02 * max(drawn.std(), 1e-12))
    if "uniform" in initialiser.kind:
        np.testing.assert_allclose([ours.min(), ours.max()], [drawn.min(), drawn.max()], rtol=1e-3)


@pytest.mark.parametrize("pet_type", ["lora", "adapter", "low_rank_adapter", "ptuning2", "prefixtuning"])
def test_each_parameter_begins_spread_as_the_networks_does(pet_type: str) -> None:
    """The network's own draw of each parameter, within what chance allows for its size."""
    config = config_for("llama", pet_type)
    inject(saved(MODELS["llama"].make()), config=for_inject(config), output="injected.ckpt")
    seed()
    network = get_pet_model(MODELS["llama"].make(), config)
    method = method_of(parse_pet_config(config).pet_type)
    tensors = open_checkpoint("injected.ckpt").tensors
    for parameter in network.get_parameters():
        if not method.trains(parameter.name):
            continue
        ours = tensors[parameter.name].read_all().astype(np.float32)
        drawn = parameter.asnumpy().astype(np.float32)
        spread = drawn.std()
        assert (spread == 0) == (ours.std() == 0), parameter.name
        tolerance = 5 / np.sqrt(2 * ours.size)
        np.testing.assert_allclose(ours.std(), spread, rtol=tolerance, err_msg=parameter.name)
