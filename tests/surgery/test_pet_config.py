"""Configurations of methods: fields, defaults, every place where they may stand, and what is refused."""

from __future__ import annotations

import copy
import json
from collections import UserDict
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surgery.errors import CorruptInputError, InputMissingError, MismatchError
from surgery.methods import (
    AdapterConfig,
    BitFitConfig,
    LoraPetConfig,
    LowRankAdapterConfig,
    PetConfig,
    PrefixTuningConfig,
    Ptuning2Config,
    known_methods,
)
from surgery.pet_config import parse_pet_config, read_pet_config

TODAY = """
model:
  model_config:
    type: GPT2Config
    pet_config:
      pet_type: lora
      lora_rank: 8
      lora_alpha: 16
      lora_dropout: 0.1
      target_modules: ".*dense1|.*dense2|.*dense3"
  arch: {type: GPT2LMHeadModel}
"""
FIRST = """
model:
  arch:
    type: GPT2WithLora
    pet:
      pet_type: lora
      pet_config: {in_channels: 768, out_channels: 768, lora_rank: 8, lora_alpha: 16, lora_dropout: 0.1}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_both_generations_of_yaml_are_read(tmp_path: Path) -> None:
    expected = LoraPetConfig(lora_rank=8, lora_alpha=16, lora_dropout=0.1)
    assert read_pet_config(written(tmp_path, FIRST)) == expected
    today = read_pet_config(written(tmp_path, TODAY))
    assert today == LoraPetConfig(
        lora_rank=8, lora_alpha=16, lora_dropout=0.1, target_modules=".*dense1|.*dense2|.*dense3"
    )


def test_a_run_that_was_saved_as_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": {"model_config": {"pet_config": {"pet_type": "bitfit"}}}}))
    assert read_pet_config(path) == BitFitConfig()


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"run\.yaml"):
        read_pet_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"pet_type": "lora"}, LoraPetConfig()),
        ({"pet_type": "LoRA", "lora_rank": 4}, LoraPetConfig(lora_rank=4)),
        (
            {
                "pet_type": "ptuning2",
                "pre_seq_len": 16,
                "prefix_projection": True,
                "projection_dim": 128,
                "dropout_rate": 0.01,
            },
            Ptuning2Config(pre_seq_len=16, prefix_projection=True, projection_dim=128, dropout_prob=0.01),
        ),
        (
            {"pet_type": "prefixtuning", "prefix_token_num": 32, "mid_dim": 512, "dropout_rate": 0.05},
            PrefixTuningConfig(prefix_token_num=32, mid_dim=512, dropout_rate=0.05),
        ),
        ({"pet_type": "adapter", "bottleneck_size": 8}, AdapterConfig(bottleneck_size=8)),
        ({"pet_type": "low_rank_adapter", "reduction_factor": 2}, LowRankAdapterConfig(reduction_factor=2)),
        ({"pet_type": "bitfit"}, BitFitConfig()),
    ],
)
def test_every_method_is_read_from_a_mapping(section: dict[str, Any], expected: PetConfig) -> None:
    assert parse_pet_config(section) == expected
    assert parse_pet_config(UserDict(section)) == expected


def test_what_is_handed_in_is_not_changed() -> None:
    run = {"model": {"model_config": {"pet_config": {"pet_type": "lora", "target_modules": [".*wq", ".*wv"]}}}}
    before = copy.deepcopy(run)
    assert parse_pet_config(run) == LoraPetConfig(target_modules=".*wq|.*wv")
    assert run == before


def test_a_networks_configuration_is_asked_for_its_pet_config() -> None:
    config = SimpleNamespace(pet_config={"pet_type": "lora", "lora_rank": 2})
    assert parse_pet_config(config) == LoraPetConfig(lora_rank=2)


@pytest.mark.parametrize("kind", [known.config for known in known_methods()])
def test_a_configuration_is_taken_as_it_is(kind: type[PetConfig]) -> None:
    config = kind()
    assert parse_pet_config(config) is config


@pytest.mark.parametrize("spelling", ["target_modules", "reg_rules"])
def test_reg_rules_means_target_modules(spelling: str) -> None:
    assert parse_pet_config({"pet_type": "lora", spelling: ".*wq"}) == LoraPetConfig(target_modules=".*wq")


@pytest.mark.parametrize("kind", [Ptuning2Config, PrefixTuningConfig])
@pytest.mark.parametrize("spelling", ["dropout_rate", "dropout_prob"])
def test_the_dropout_of_a_prefix_has_two_names(kind: type[PetConfig], spelling: str) -> None:
    config = parse_pet_config({"pet_type": kind.pet_type, spelling: 0.25})
    assert 0.25 in [getattr(config, entry.name) for entry in fields(config)]


def test_two_names_of_one_option_may_agree_but_not_differ() -> None:
    section = {"pet_type": "lora", "target_modules": ".*wq", "reg_rules": ".*wq"}
    assert parse_pet_config(section) == LoraPetConfig(target_modules=".*wq")
    with pytest.raises(CorruptInputError, match="target_modules and reg_rules"):
        parse_pet_config(section | {"reg_rules": ".*wv"})


def test_lists_are_alternatives() -> None:
    config = LoraPetConfig(target_modules=[".*wq", ".*wv"], exclude_layers=["0"])  # type: ignore[arg-type]
    assert (config.target_modules, config.exclude_layers) == (".*wq|.*wv", ("0",))


@pytest.mark.parametrize("spelling", ["float16", "Float16", "mindspore.float16", "mstype.float16"])
def test_an_element_type_is_known_by_every_spelling_of_mindspore(spelling: str) -> None:
    assert LoraPetConfig(param_init_type=spelling).param_init_type == "float16"


@pytest.mark.parametrize(
    ("key", "near"), [("lora_rnk", "lora_rank"), ("target_module", "target_modules"), ("reg_rule", "reg_rules")]
)
def test_an_unknown_key_is_refused_with_the_near_name(key: str, near: str) -> None:
    with pytest.raises(CorruptInputError, match=f"{key}: no option of LoRA.*Did you mean {near}"):
        parse_pet_config({"pet_type": "lora", key: 8})


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_unknown_key_that_says_nothing_is_accepted(value: object) -> None:
    assert parse_pet_config({"pet_type": "lora", "next_years": value}) == LoraPetConfig()


@pytest.mark.parametrize(
    ("pet_type", "option", "value"),
    [
        ("lora", "lora_rank", 0),
        ("lora", "lora_rank", "8"),
        ("lora", "lora_rank", 8.5),
        ("lora", "lora_rank", True),
        ("lora", "lora_alpha", 0),
        ("lora", "lora_alpha", float("nan")),
        ("lora", "lora_dropout", 1.0),
        ("lora", "lora_dropout", -0.1),
        ("lora", "lora_a_init", "norml"),
        ("lora", "param_init_type", "int8"),
        ("lora", "target_modules", "("),
        ("lora", "target_modules", [".*wq", "("]),
        ("lora", "exclude_layers", ["("]),
        ("lora", "freeze_include", "*bias"),
        ("ptuning2", "pre_seq_len", 0),
        ("ptuning2", "prefix_projection", "yes"),
        ("ptuning2", "dropout_rate", 2),
        ("prefixtuning", "mid_dim", -1),
        ("adapter", "non_linearity", "prelu"),
        ("low_rank_adapter", "low_rank_w_init", "zero point five"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(pet_type: str, option: str, value: object) -> None:
    with pytest.raises(CorruptInputError, match=option):
        parse_pet_config({"pet_type": pet_type, option: value})


def test_all_that_is_wrong_is_reported_at_once() -> None:
    with pytest.raises(CorruptInputError) as caught:
        parse_pet_config({"pet_type": "lora", "lora_rank": -1, "lora_dropout": 7, "rank": 3, "target_modules": "["})
    assert len(caught.value.problems) == 4


def test_a_value_that_is_wrong_in_python_is_refused_too() -> None:
    with pytest.raises(CorruptInputError) as caught:
        LoraPetConfig(lora_rank=0, lora_alpha=float("inf"))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(("name", "near"), [("lara", "lora"), ("ptuning", "ptuning2"), ("prefix", "prefixtuning")])
def test_an_unknown_method_is_refused_with_the_near_name(name: str, near: str) -> None:
    with pytest.raises(MismatchError, match=f"Did you mean .*{near}"):
        parse_pet_config({"pet_type": name})


def test_a_configuration_without_a_method_is_refused_unless_the_method_is_known_otherwise() -> None:
    with pytest.raises(MismatchError, match="no pet_type"):
        parse_pet_config({"lora_rank": 8})
    assert parse_pet_config({"lora_rank": 8}, pet_type="lora") == LoraPetConfig()
    assert parse_pet_config({}, pet_type="lora") == LoraPetConfig()


def test_the_configuration_of_another_method_is_refused() -> None:
    with pytest.raises(MismatchError, match="expected 'lora'"):
        parse_pet_config({"pet_type": "ptuning2"}, pet_type="lora")
    with pytest.raises(MismatchError, match="expected 'lora'"):
        parse_pet_config(BitFitConfig(), pet_type="lora")


@pytest.mark.parametrize("values", [{}, {"model": {"model_config": {"type": "LlamaConfig"}}}, 3, "lora"])
def test_what_says_nothing_on_tuning_is_refused(values: object) -> None:
    with pytest.raises(MismatchError, match="pet_"):
        parse_pet_config(values)


def test_two_sections_that_differ_are_refused() -> None:
    section = {"pet_type": "lora", "lora_rank": 8}
    run = {"model": {"model_config": {"pet_config": section}, "arch": {"pet": {"pet_type": "lora", "pet_config": {}}}}}
    assert parse_pet_config(run) == LoraPetConfig()
    section["lora_rank"] = 4
    with pytest.raises(MismatchError, match="several sections"):
        parse_pet_config(run)


@pytest.mark.parametrize(
    "config", [Ptuning2Config(pre_seq_len=61), PrefixTuningConfig(prefix_token_num=61)], ids=lambda c: c.pet_type
)
def test_a_prefix_longer_than_sixty_is_warned_of_with_the_documents_reason(config: PetConfig) -> None:
    (warning,) = config.warnings
    assert "5,000 samples" in warning
    assert "61" in warning


def test_a_shorter_prefix_is_not_warned_of() -> None:
    assert Ptuning2Config(pre_seq_len=60).warnings == PrefixTuningConfig(prefix_token_num=60).warnings == ()
