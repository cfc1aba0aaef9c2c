"""What methods add to a network. `tests/mindspore` holds these descriptions to what MindPet and MindFormers make."""

from __future__ import annotations

import math

import pytest

from surgery.errors import MismatchError, UsageError
from surgery.methods import (
    AdapterConfig,
    BitFitConfig,
    Initialiser,
    LayerKind,
    LoraPetConfig,
    LowRankAdapterConfig,
    Method,
    NetworkShape,
    NewParameter,
    PetConfig,
    PrefixTuningConfig,
    Ptuning2Config,
    TargetLayer,
    known_methods,
    method_for,
    method_of,
    register_method,
)
from surgery.naming import Role, classify

LAYER = TargetLayer("model.layers.0.attention.wq", 12, 20, "bf16")
SHAPE = NetworkShape(num_layers=2, num_heads=4, kv_channels=8)
CONFIGS = (
    LoraPetConfig(),
    Ptuning2Config(prefix_projection=True),
    PrefixTuningConfig(),
    AdapterConfig(),
    LowRankAdapterConfig(),
    BitFitConfig(),
)


def added(config: PetConfig, *layers: TargetLayer) -> dict[str, NewParameter]:
    parameters = method_for(config).add_parameters(config, layers or (LAYER,), SHAPE)
    return {parameter.name.removeprefix(f"{LAYER.name}."): parameter for parameter in parameters}


def test_lora_adds_two_matrices_of_the_layers_type() -> None:
    parameters = added(LoraPetConfig(lora_rank=3))
    a, b = parameters["mindpet_delta_lora_a"], parameters["mindpet_delta_lora_b"]
    assert (a.shape, a.dtype, a.initialiser) == ((3, 12), "bf16", Initialiser("he_uniform", math.sqrt(5)))
    assert (b.shape, b.dtype, b.initialiser) == ((20, 3), "bf16", Initialiser("zeros"))
    assert len(parameters) == 2


def test_lora_of_the_parallel_core_has_its_names_and_its_initialisers() -> None:
    parameters = added(LoraPetConfig(lora_rank=3), TargetLayer(LAYER.name, 12, 20, "bf16", LayerKind.COLUMN_PARALLEL))
    assert set(parameters) == {"lora_A.weight", "lora_B.weight"}
    assert parameters["lora_A.weight"].initialiser == Initialiser("normal", 0.01)


def test_an_element_type_and_initialisers_may_be_chosen() -> None:
    config = LoraPetConfig(param_init_type="float32", lora_a_init="xavier_uniform", lora_b_init="ones")
    a, b = added(config).values()
    assert (a.dtype, a.initialiser, b.initialiser) == ("fp32", Initialiser("xavier_uniform"), Initialiser("ones"))


def test_a_network_that_is_one_layer_has_no_dots() -> None:
    assert set(added(LoraPetConfig(), TargetLayer("", 4, 4))) == {"mindpet_delta_lora_a", "mindpet_delta_lora_b"}


def test_a_prefix_has_a_key_and_a_value_for_each_head_of_each_layer() -> None:
    parameters = added(Ptuning2Config(pre_seq_len=16))
    assert {name: parameter.shape for name, parameter in parameters.items()} == {
        "mindpet_delta_ptuning2_prefix": (16,),
        "mindpet_delta_ptuning2_embedding.embedding_table": (16, 2 * 2 * 4 * 8),
    }
    assert not parameters["mindpet_delta_ptuning2_prefix"].is_trained


@pytest.mark.parametrize(
    ("config", "stem", "width"),
    [
        (Ptuning2Config(pre_seq_len=16, prefix_projection=True, projection_dim=5), "ptuning2", 5),
        (PrefixTuningConfig(prefix_token_num=16, mid_dim=7), "prefixtuning", 7),
    ],
)
def test_a_projected_prefix_has_two_dense_layers(config: PetConfig, stem: str, width: int) -> None:
    parameters = added(config)
    assert parameters[f"mindpet_delta_{stem}_trans.0.weight"].shape == (width, 128)
    assert parameters[f"mindpet_delta_{stem}_trans.2.weight"].shape == (128, width)
    assert {parameter.dtype for parameter in parameters.values()} == {"fp16", "int64"}


def test_a_bottleneck_is_as_wide_as_the_layers_output() -> None:
    parameters = added(AdapterConfig(bottleneck_size=6))
    block = "mindpet_delta_adapter.mindpet_delta_adapter_block.mindpet_delta_adapter"
    assert {name: parameter.shape for name, parameter in parameters.items()} == {
        f"{block}_down_sampler.weight": (6, 20),
        f"{block}_down_sampler.bias": (6,),
        f"{block}_up_sampler.weight": (20, 6),
        f"{block}_up_sampler.bias": (20,),
    }


def test_a_low_rank_adapter_has_two_products() -> None:
    parameters = added(LowRankAdapterConfig(reduction_factor=3, low_rank_size=2))
    shapes = {name.rpartition("mindpet_delta_low_rank_adapter_")[2]: p.shape for name, p in parameters.items()}
    assert shapes == {
        "weight_left": (6, 2),
        "weight_right": (2, 20),
        "down_sampler.bias": (6,),
        "up_sampler.bias": (20,),
    }
    assert len(parameters) == 6


def test_a_low_rank_adapter_needs_a_layer_as_wide_as_its_factor() -> None:
    with pytest.raises(MismatchError, match="reduction_factor 21 for an output of 20"):
        added(LowRankAdapterConfig(reduction_factor=21))


def test_bitfit_adds_nothing() -> None:
    assert added(BitFitConfig()) == {}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.pet_type)
def test_a_method_trains_what_it_adds_and_no_weight_of_the_network(config: PetConfig) -> None:
    method = method_for(config)
    for name, parameter in added(config).items():
        assert method.trains(name), name
        assert classify(parameter.name).role is not Role.WEIGHT
    others = [other for other in CONFIGS if other is not config and not isinstance(config, BitFitConfig)]
    for other in others:
        assert not any(method.trains(name) for name in added(other)), f"{config.pet_type} trains {other.pet_type}"
    assert not method.trains("model.layers.0.attention.wq.weight")
    assert method.trains("model.layers.0.attention.wq.bias") == isinstance(config, BitFitConfig)


def test_only_lora_folds_and_the_others_say_why_they_do_not() -> None:
    assert [method.pet_type for method in known_methods() if method.folds] == ["lora"]
    assert all(method.folds or method.cannot_fold for method in known_methods())


def test_a_method_is_found_in_any_case() -> None:
    assert method_of("LoRA") is method_of("lora")


def test_two_methods_cannot_share_a_name() -> None:
    lora = method_of("lora")
    assert register_method(lora) is lora
    impostor = Method("lora", "an impostor", BitFitConfig, lora.target, lora.add_parameters, ())
    with pytest.raises(UsageError, match="taken by LoRA"):
        register_method(impostor)
