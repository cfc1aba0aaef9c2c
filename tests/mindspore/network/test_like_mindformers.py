"""What MindFormers' own `get_pet_model` makes of the same network and seed, beside what is made here."""

from __future__ import annotations

import copy
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest
from mindformers.pet import get_pet_model as theirs
from mindformers.pet import pet_config as their_configs
from mindformers.pet.tuners.lora_adapter import recursive_replace_dense_cell
from mindspore import nn
from networks import MODELS, Model, PlainNet, llama, llama_config, output, seed, train

from surgery.errors import MismatchError
from surgery.methods import LayerKind, LoraPetConfig, PetConfig, PrefixTuningConfig, Ptuning2Config
from surgery.network import get_pet_model
from surgery.network.layers import select_layers
from surgery.pet_config import parse_pet_config

LORA = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}
PTUNING2 = {
    "pet_type": "ptuning2",
    "pre_seq_len": 8,
    "prefix_projection": True,
    "projection_dim": 12,
    "dropout_prob": 0.0,
}
PREFIX = {"pet_type": "prefixtuning", "prefix_token_num": 8, "mid_dim": 12, "dropout_rate": 0.0}
CASES = [
    *((name, {**LORA, "target_modules": MODELS[name].rule}) for name in ("llama", "glm2", "gpt2") if name in MODELS),
    ("llama", PTUNING2),
    ("llama", PREFIX),
]


def made(make: Any, model: Model, config: Any) -> nn.Cell:
    seed()
    return make(model.make(), copy.deepcopy(config))


@pytest.mark.parametrize(("name", "config"), CASES, ids=[f"{name}-{config['pet_type']}" for name, config in CASES])
def test_names_shapes_trained_parameters_and_training_are_theirs(name: str, config: dict[str, Any]) -> None:
    model = MODELS[name]
    networks = [made(make, model, config) for make in (theirs, get_pet_model)]
    facts = [
        {p.name: (tuple(p.shape), str(p.dtype), p.requires_grad) for p in network.get_parameters()}
        for network in networks
    ]
    assert facts[0] == facts[1]
    losses = [train(network, model.training) for network in networks]
    assert losses[0] == losses[1]
    logits = [output(network, model.inputs) for network in networks]
    assert logits[0].tobytes() == logits[1].tobytes()


@pytest.mark.parametrize(
    ("ours", "their"),
    [
        (LoraPetConfig, their_configs.LoraConfig),
        (Ptuning2Config, their_configs.Ptuning2Config),
        (PrefixTuningConfig, their_configs.PrefixTuningConfig),
    ],
)
def test_fields_and_defaults_are_theirs(ours: type[PetConfig], their: Any) -> None:
    config = dict(their())
    assert config.pop("pet_type") == ours.pet_type
    mine = {entry.name: getattr(ours(), entry.name) for entry in fields(ours)}
    assert config == {name: mine[name] for name in config}


@pytest.mark.parametrize(
    "config",
    [
        their_configs.LoraConfig(lora_rank=4, target_modules=".*wq", param_init_type="float16"),
        their_configs.Ptuning2Config(pre_seq_len=16),
        their_configs.PrefixTuningConfig(mid_dim=16),
    ],
)
def test_their_configurations_are_read_and_not_changed(config: Any) -> None:
    before = copy.deepcopy(dict(config))
    parsed = parse_pet_config(config)
    assert dict(config) == before
    assert {key: value for key, value in asdict(parsed).items() if key in before and "type" not in key} == {
        key: value for key, value in before.items() if "type" not in key
    }
    if isinstance(parsed, LoraPetConfig):
        assert parsed.param_init_type == "float16"


def test_a_networks_configuration_is_not_changed_by_a_prefix() -> None:
    network = llama()
    before = network.config.to_dict()
    get_pet_model(network, PTUNING2)
    assert network.config.to_dict() == before


def test_the_callers_dictionary_keeps_its_pet_type() -> None:
    config = {**LORA, "target_modules": ".*wq"}
    get_pet_model(llama(), config)
    assert config == {**LORA, "target_modules": ".*wq"}


def test_a_network_is_built_of_a_configuration_that_carries_its_tuning() -> None:
    config = llama_config(pet_config={**LORA, "target_modules": ".*wq"})
    seed()
    built = get_pet_model(None, config)
    seed()
    brought = get_pet_model(llama(), {**LORA, "target_modules": ".*wq"})
    inputs = MODELS["llama"].inputs
    assert output(built, inputs).tobytes() == output(brought, inputs).tobytes()
    assert config.pet_config["lora_rank"] == 4


def theirs_selected(rule: str, *exclude: str) -> list[str]:
    network = recursive_replace_dense_cell(
        PlainNet(), their_configs.LoraConfig(target_modules=rule, exclude_layers=list(exclude) or None)
    )
    return [path for path, cell in network.cells_and_names() if type(cell).__name__ == "LoRADense"]


@pytest.mark.parametrize(
    ("rule", "exclude"),
    [
        (".*dense*|.*linear*|.*mapping*|.*projection*", ()),
        ("dense", ("0",)),
        ("dense|head", ()),
        ("dense|mlp", ()),
        ("head", ("dense", "blocks")),
        (".*", ()),
        ("d|h", ("head",)),
        ("norm|dense", ()),
        ("ense", ()),
    ],
)
def test_a_rule_selects_what_it_selects_there(rule: str, exclude: tuple[str, ...]) -> None:
    config = LoraPetConfig(target_modules=rule, exclude_layers=exclude or None)
    try:
        ours = list(select_layers(PlainNet(), config, frozenset(LayerKind)).paths)
    except MismatchError:
        ours = []  # where they add nothing and say nothing
    assert ours == theirs_selected(rule, *exclude)


def test_a_rule_that_they_ignore_is_the_same_as_the_one_that_they_read() -> None:
    seed()
    first = get_pet_model(llama(), {**LORA, "reg_rules": ".*wq|.*wv"})
    seed()
    second = get_pet_model(llama(), {**LORA, "target_modules": ".*wq|.*wv"})
    names = [[parameter.name for parameter in network.trainable_params()] for network in (first, second)]
    assert names[0] == names[1]
    assert len(names[0]) == 4


def test_a_prefix_fits_grouped_query_attention_which_theirs_does_not() -> None:
    model = MODELS["llama"]
    network = get_pet_model(llama(n_kv_heads=2), PTUNING2)
    assert np.isfinite(train(network, model.training)).all()
    failing = theirs(llama(n_kv_heads=2), dict(PTUNING2))
    with pytest.raises(Exception, match="shape"):
        output(failing, model.inputs)  # and no gradient: MindSpore does not recover from an error within one
