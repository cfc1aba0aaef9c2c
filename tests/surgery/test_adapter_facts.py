"""Configurations that are written are read back as what they were written from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from surgery.adapter_facts import (
    AdaptedLayer,
    AdapterFacts,
    mindformers_config,
    peft_config,
    slora_config,
    surgery_section,
)
from surgery.config import Selection
from surgery.config_files import parse_adapter_config
from surgery.errors import MismatchError
from surgery.targets import selects

LAYERS = tuple(
    AdaptedLayer(f"model.layers.{block}.self_attn.{leaf}", 8, 16.0)
    for block in range(3)
    for leaf in ("q_proj", "v_proj")
)
FACTS = AdapterFacts(LAYERS, section=surgery_section("pet-ft1:00"))


@pytest.mark.parametrize("make", [peft_config, mindformers_config])
def test_rank_alpha_and_layers_are_read_back(make) -> None:  # type: ignore[no-untyped-def]
    config = parse_adapter_config(make(FACTS), "adapter_config.json")
    for layer in LAYERS:
        assert (config.rank_of(layer.name), config.alpha_of(layer.name)) == (8, 16.0)
        assert selects(config, layer.name)
    assert not selects(config, "model.layers.0.self_attn.k_proj")
    assert config.base_fingerprint == "pet-ft1:00"


def test_mindformers_own_form_is_recognised_as_mindformers() -> None:
    config = mindformers_config(FACTS)
    assert config["target_modules"] == [".*q_proj", ".*v_proj"]
    assert parse_adapter_config(config, "x").selection is Selection.MINDFORMERS


@pytest.mark.parametrize("make", [peft_config, mindformers_config])
def test_layers_of_other_ranks_and_alphas_are_named(make) -> None:  # type: ignore[no-untyped-def]
    odd = replace(LAYERS[1], rank=4, alpha=2.5)
    config = parse_adapter_config(make(replace(FACTS, layers=(LAYERS[0], odd, *LAYERS[2:]))), "x")
    assert (config.rank_of(odd.name), config.alpha_of(odd.name)) == (4, 2.5)
    assert {config.rank_of(layer.name) for layer in LAYERS if layer.name != odd.name} == {8}


def test_a_layer_whose_name_ends_anothers_has_its_own_rank_and_alpha() -> None:
    text = AdaptedLayer("model.layers.0.q_proj", 4, 2.5)
    vision = [AdaptedLayer(f"vision.model.layers.{block}.q_proj", 8, 16.0) for block in range(2)]
    config = parse_adapter_config(peft_config(replace(FACTS, layers=(text, *vision))), "x")
    for layer in (text, *vision):
        assert (config.rank_of(layer.name), config.alpha_of(layer.name)) == (layer.rank, layer.alpha)


def test_whole_numbers_are_written_as_such() -> None:
    assert peft_config(FACTS)["lora_alpha"] == 16
    assert isinstance(peft_config(FACTS)["lora_alpha"], int)


def test_what_is_not_plain_lora_is_said() -> None:
    facts = replace(
        FACTS, use_rslora=True, use_dora=True, lora_bias=True, saved_modules=("lm_head",), base_name="Llama"
    )
    for make in (peft_config, mindformers_config):
        config = parse_adapter_config(make(facts), "x")
        assert (config.use_rslora, config.use_dora, config.lora_bias) == (True, True, True)
        assert (config.modules_to_save, config.base_model_name) == (("lm_head",), "Llama")


@pytest.mark.parametrize(
    ("layers", "others", "targets"),
    [
        # All blocks have it: the last component says it all.
        ([f"layers.{n}.q" for n in range(4)], [], ["q"]),
        # Some block is left out, as the numbers show, or the base.
        (["layers.0.q", "layers.2.q"], [], ["layers.0.q", "layers.2.q"]),
        (["layers.0.q", "layers.1.q"], ["layers.2.q"], ["layers.0.q", "layers.1.q"]),
        (["layers.0.q", "layers.1.q"], ["layers.0.k", "layers.1.k"], ["q"]),
        # Of one projection all, of another some.
        (["layers.0.q", "layers.1.q", "layers.1.v"], [], ["q", "layers.1.v"]),
        (["head"], [], ["head"]),
    ],
)
def test_targets_select_the_adapted_layers_and_no_other(
    layers: list[str], others: list[str], targets: list[str]
) -> None:
    facts = AdapterFacts(tuple(AdaptedLayer(name, 8, 16.0) for name in layers), tuple(others))
    config = peft_config(facts)
    assert config["target_modules"] == targets
    parsed = parse_adapter_config(config, "x")
    assert all(selects(parsed, name) for name in layers)
    assert not any(selects(parsed, name) for name in others)


def test_slora_has_one_rank_and_a_whole_alpha() -> None:
    config = slora_config(FACTS)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (8, 16, ["q_proj", "v_proj"])
    assert isinstance(config["lora_dropout"], float)
    for facts, says in (
        (replace(FACTS, layers=(*LAYERS, AdaptedLayer("x", 4, 8.0))), "several ranks"),
        (replace(FACTS, layers=tuple(replace(layer, alpha=2.5) for layer in LAYERS)), "alpha 2.5"),
        (replace(FACTS, use_dora=True), "magnitudes"),
    ):
        with pytest.raises(MismatchError, match=says):
            slora_config(facts)
