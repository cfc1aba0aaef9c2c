"""What each family's names are taken for. PEFT's are those that PEFT 0.21.2 saves for the option named beside them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.naming import Role, classify

PEFT = "base_model.model.model"
LAYER = "model.layers.0.self_attn.q_proj"

ADAPTERS = [
    ("model.layers.0.attention.wq.mindpet_delta_lora_a", Role.LORA_A, "mindpet", "model.layers.0.attention.wq"),
    ("model.layers.0.attention.wq.mindpet_delta_lora_b", Role.LORA_B, "mindpet", "model.layers.0.attention.wq"),
    ("dense.mindpet_delta_lora_A", Role.LORA_A, "mindpet-bare", "dense"),
    ("dense.mindpet_delta_lora_B", Role.LORA_B, "mindpet-bare", "dense"),
    ("transformer.layers.3.wk.tk_delta_lora_a", Role.LORA_A, "tk", "transformer.layers.3.wk"),
    ("transformer.layers.3.wk.tk_delta_lora_b", Role.LORA_B, "tk", "transformer.layers.3.wk"),
    ("decoder.layers.0.mlp.linear_fc2.lora_a", Role.LORA_A, "pynative", "decoder.layers.0.mlp.linear_fc2"),
    ("decoder.layers.0.mlp.linear_fc2.lora_b", Role.LORA_B, "pynative", "decoder.layers.0.mlp.linear_fc2"),
    ("decoder.layers.0.mlp.linear_fc1.lora_A.weight", Role.LORA_A, "parallel-core", "decoder.layers.0.mlp.linear_fc1"),
    ("decoder.layers.0.mlp.linear_fc1.lora_B.weight", Role.LORA_B, "parallel-core", "decoder.layers.0.mlp.linear_fc1"),
    (f"{PEFT}.layers.0.self_attn.q_proj.lora_A.weight", Role.LORA_A, "peft", LAYER),
    (f"{PEFT}.layers.0.self_attn.q_proj.lora_B.weight", Role.LORA_B, "peft", LAYER),
    (f"{PEFT}.layers.0.self_attn.q_proj.lora_magnitude_vector", Role.LORA_MAGNITUDE, "peft", LAYER),  # use_dora
    (f"{PEFT}.layers.0.self_attn.q_proj.lora_A.default.weight", Role.LORA_A, "peft", LAYER),  # a live model
    ("model.layers.0.self_attn.q_proj.lora_B.default.weight", Role.LORA_B, "peft", LAYER),  # a live model, injected
    (f"{PEFT}.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight", Role.LORA_MAGNITUDE, "peft", LAYER),
    (f"{PEFT}.embed_tokens.lora_embedding_A", Role.EMBEDDING_A, "peft", "model.embed_tokens"),
    (f"{PEFT}.embed_tokens.lora_embedding_B.default", Role.EMBEDDING_B, "peft", "model.embed_tokens"),
]


@pytest.mark.parametrize(("name", "role", "family", "layer"), ADAPTERS)
def test_an_adapter_parameter_is_told_by_its_name(name: str, role: Role, family: str, layer: str) -> None:
    parameter = classify(name)
    assert (parameter.role, parameter.family, parameter.layer) == (role, family, layer)
    assert parameter.base == f"{layer}.weight"


def test_a_bare_mindpet_name_belongs_to_a_layer_without_name() -> None:
    parameter = classify("mindpet_delta_lora_A")
    assert (parameter.role, parameter.layer, parameter.base) == (Role.LORA_A, "", "weight")


def test_an_expert_adapter_belongs_to_the_weight_that_its_name_begins_with() -> None:
    parameter = classify("decoder.layers.1.mlp.experts.weight1_lora_b")
    assert (parameter.role, parameter.family) == (Role.EXPERT_B, "pynative")
    assert parameter.layer == parameter.base == "decoder.layers.1.mlp.experts.weight1"


def test_slora_on_the_embedding_is_an_embedding_adapter() -> None:
    parameter = classify("model.tok_embeddings.lora_a")
    assert (parameter.role, parameter.base) == (Role.EMBEDDING_A, "model.tok_embeddings.embedding_weight")


def test_the_bias_of_b_belongs_to_the_layers_bias() -> None:  # lora_bias
    parameter = classify(f"{PEFT}.layers.0.self_attn.q_proj.lora_B.bias")
    assert (parameter.role, parameter.base) == (Role.LORA_B_BIAS, f"{LAYER}.bias")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("base_model.model.lm_head.weight", "lm_head.weight"),  # modules_to_save
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),  # a live model
        (f"{PEFT}.layers.0.self_attn.q_proj.base_layer.bias", f"{LAYER}.bias"),  # bias="lora_only"
        (f"{PEFT}.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.k_proj.bias"),  # bias="all"
        (f"{PEFT}.embed_tokens.base_layer.weight", "model.embed_tokens.weight"),  # save_embedding_layers
        ("model.layers.0.attention.wq.weight", "model.layers.0.attention.wq.weight"),
        ("base_layer.0.weight", "base_layer.0.weight"),  # DLA's own name, not PEFT's wrapper
    ],
)
def test_a_plain_weight_keeps_the_base_models_name(name: str, base: str) -> None:
    parameter = classify(name)
    assert (parameter.role, parameter.base) == (Role.WEIGHT, base)


def test_what_modules_to_save_replaced_is_superseded() -> None:
    parameter = classify("base_model.model.lm_head.original_module.weight")
    assert (parameter.role, parameter.layer) == (Role.SUPERSEDED, "lm_head")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("mindpet_delta_ptuning2_embedding.embedding_table", Role.PTUNING2),
        ("mindpet_delta_ptuning2_trans.0.weight", Role.PTUNING2),
        ("model.mindpet_delta_prefixtuning_wte.embedding_table", Role.PREFIX),
        ("layer.mindpet_delta_adapter.mindpet_delta_adapter_block.0.weight", Role.BOTTLENECK),
        ("layer.mindpet_delta_low_rank_adapter.mindpet_delta_low_rank_adapter_weight_left", Role.LOW_RANK_ADAPTER),
        ("layer.mindpet_delta_something_else", Role.OTHER_METHOD),
        ("prompt_embeddings", Role.PREFIX),
        ("prefix_task_cols", Role.PREFIX),
    ],
)
def test_other_pet_methods_are_recognised(name: str, role: Role) -> None:
    assert classify(name).role is role


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        ("ia3_l", "IA3"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w2_b", "LoKr"),
        ("oft_R.weight", "OFT"),
        ("vera_lambda_b", "VeRA"),
        ("lora_A", "AdaLoRA"),
        ("lora_E", "AdaLoRA"),
        ("ranknum", "AdaLoRA"),
        ("lora_diag", "KaSA"),
        ("token_adapter.trainable_tokens_delta", "trainable tokens"),
        ("lora_A.bias", "a bias of LoRA A"),
    ],
)
def test_pefts_other_methods_are_named(suffix: str, method: str) -> None:
    parameter = classify(f"{PEFT}.layers.0.self_attn.q_proj.{suffix}")
    assert (parameter.role, parameter.method, parameter.layer) == (Role.OTHER_METHOD, method, LAYER)


def test_a_modules_name_that_begins_like_a_method_is_no_method() -> None:
    assert classify("base_model.model.road_net.layers.0.mlp.up_proj.bias").role is Role.WEIGHT


@pytest.mark.parametrize("suffix", ["lora_velora_embed", "lora_monteclora_sampler.std_prior"])
def test_what_only_the_training_used_is_a_training_aid(suffix: str) -> None:  # velora_config, monteclora_config
    assert classify(f"{PEFT}.layers.0.self_attn.q_proj.{suffix}").role is Role.TRAINING_AID


def test_an_optimizer_state_of_an_adapter_is_a_state() -> None:
    parameter = classify("adam_m.model.layers.0.attention.wq.mindpet_delta_lora_a")
    assert (parameter.role, parameter.method, parameter.family) == (Role.OPTIMIZER, "adam_m", "mindpet")
    assert parameter.layer == "model.layers.0.attention.wq"


def test_a_training_scalar_is_one_only_as_a_whole_name() -> None:
    assert classify("learning_rate").role is Role.SCALAR
    assert classify("model.router.learning_rate").role is Role.WEIGHT


@given(st.text())
def test_any_text_is_classified_and_keeps_its_name(name: str) -> None:
    assert classify(name).name == name
