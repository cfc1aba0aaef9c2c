"""Selection, patterns and tied names against PEFT and transformers themselves."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from surgery.config import LoraConfig
from surgery.naming import Role, classify
from surgery.peft_config import parse_peft_config
from surgery.targets import selects
from surgery.ties import tied_partner

COMPONENTS = ("model", "layers", "h", "0", "1", "10", "self_attn", "q_proj", "xq_proj", "experts", "w1")
NAMES = st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=7).map(".".join)
EXPRESSIONS = st.sampled_from(
    ("q_proj", r".*\.q_proj", r".*(q_proj|w1)", r".*layers\.[01]\..*", "^model.*", "layers.1", "")
)
NAME_LISTS = st.lists(NAMES, max_size=3)


@st.composite
def selections(draw: st.DrawFn) -> dict[str, Any]:
    options: dict[str, Any] = {"exclude_modules": draw(st.none() | NAME_LISTS | EXPRESSIONS)}
    options["modules_to_save"] = draw(st.none() | st.lists(st.sampled_from(COMPONENTS), max_size=1))
    if draw(st.booleans()):
        return {**options, "target_modules": draw(EXPRESSIONS)}
    options["target_modules"] = draw(NAME_LISTS)
    options["layers_to_transform"] = draw(st.none() | st.integers(0, 1) | st.lists(st.integers(0, 10), max_size=2))
    if options["layers_to_transform"] is not None:
        options["layers_pattern"] = draw(st.none() | st.sampled_from(("layers", "h", "")) | NAME_LISTS)
    return options


@given(selections(), NAMES)
def test_a_layer_is_selected_as_peft_selects_it(options: dict[str, Any], layer: str) -> None:
    theirs = bool(check_target_module_exists(peft.LoraConfig(**options), layer))
    ours = parse_peft_config({"peft_type": "LORA", **options}, "adapter_config.json")
    assert bool(selects(ours, layer)) is theirs


@given(st.lists(NAMES | EXPRESSIONS, unique=True, max_size=4), NAMES)
def test_a_pattern_is_found_as_peft_finds_it(patterns: list[str], layer: str) -> None:
    ranks = {pattern: rank for rank, pattern in enumerate(patterns, start=1)}
    expected = ranks.get(get_pattern_key(ranks.keys(), layer), 100)
    assert LoraConfig("c", rank=100, rank_pattern=ranks).rank_of(layer) == expected


def test_every_option_of_the_installed_peft_is_known() -> None:
    """A default that is refused, or not known, would refuse every adapter of this version."""
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"])
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    assert parse_peft_config({**values, "peft_type": "LORA"}, "adapter_config.json").alpha == 16


@pytest.mark.parametrize(
    "name",
    [
        *("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM", "GemmaForCausalLM", "GPT2LMHeadModel"),
        *("GPTNeoXForCausalLM", "BertForMaskedLM", "RobertaForMaskedLM", "OPTForCausalLM", "BloomForCausalLM"),
        *("FalconForCausalLM", "T5ForConditionalGeneration", "BartForConditionalGeneration"),
    ],
)
def test_every_tie_of_transformers_is_known(name: str) -> None:
    ties = getattr(transformers, name)._tied_weights_keys
    if not isinstance(ties, dict):
        pytest.skip("transformers 4 does not say what a weight is tied to")
    assert ties
    for missing, present in ties.items():
        assert tied_partner(missing, {present}) == present


def test_the_names_that_peft_saves_are_classified() -> None:
    shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads))
    base = set(network.state_dict())
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"], use_dora=True, bias="lora_only"
    )
    model = peft.get_peft_model(network, config)
    for names in (peft.get_peft_model_state_dict(model), model.state_dict()):
        parameters = [classify(name) for name in names]
        assert {parameter.family for parameter in parameters} == {"peft"}
        assert all(parameter.base in base for parameter in parameters if parameter.role is not Role.SUPERSEDED)
