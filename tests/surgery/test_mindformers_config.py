"""MindFormers' run YAMLs of every generation, and the manifest of its PyNative adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgery.config import LoraConfig, Selection
from surgery.errors import CorruptInputError, MismatchError
from surgery.mindformers_config import read_mindformers_adapter_config, read_run_yaml

TODAY = """
model:
  model_config:
    type: GPT2Config
    pet_config:
      pet_type: lora
      lora_rank: 8
      lora_alpha: 16
      lora_dropout: 0.1
      target_modules: '.*dense1|.*dense2|.*dense3'
      exclude_layers: ['dense2']
  arch: {type: GPT2LMHeadModel}
"""
FIRST = """
model:
  arch:
    type: GPT2WithLora
    pet:
      pet_type: lora
      pet_config: {in_channels: 768, out_channels: 768, lora_rank: 8, lora_alpha: 16, reg_rules: '.*dense*'}
"""
PYNATIVE = """
lora_config:
  target_modules: 'linear_(qkv|proj)$'
  exclude_layers: 'mtp'
  lora_rank: 8
  lora_alpha: 16
  lora_a_std: 0.01
"""
TOP = """
pet_type: lora
pet_config: {lora_rank: 8, lora_alpha: 16}
"""
ALONE = """
pet_type: lora
lora_rank: 8
lora_alpha: 16
target_modules: ['.*wq', '.*wv']
"""


def read(tmp_path: Path, text: str) -> LoraConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_run_yaml(path)


@pytest.mark.parametrize(
    ("text", "target_modules", "exclude", "selection"),
    [
        (TODAY, ".*dense1|.*dense2|.*dense3", ("dense2",), Selection.MINDFORMERS),
        (FIRST, ".*dense*", None, Selection.MINDFORMERS),
        (PYNATIVE, "linear_(qkv|proj)$", ("mtp",), Selection.MINDFORMERS_PYNATIVE),
        (TOP, None, None, Selection.MINDFORMERS),
        (ALONE, ".*wq|.*wv", None, Selection.MINDFORMERS),
    ],
    ids=["model_config", "arch", "pynative", "top", "alone"],
)
def test_every_generation_is_read(
    tmp_path: Path, text: str, target_modules: str | None, exclude: tuple[str, ...] | None, selection: Selection
) -> None:
    config = read(tmp_path, text)
    assert (config.rank, config.alpha) == (8, 16.0)
    assert (config.target_modules, config.exclude_modules, config.selection) == (target_modules, exclude, selection)


def test_an_alpha_that_is_not_given_is_unknown_rather_than_the_default(tmp_path: Path) -> None:
    assert read(tmp_path, "pet_config: {pet_type: lora, lora_rank: 8}").alpha is None


def test_a_methods_name_may_be_in_capitals(tmp_path: Path) -> None:
    assert read(tmp_path, "pet_config: {pet_type: LoRA, lora_rank: 8}").rank == 8


def test_pynative_trains_with_the_whole_part_of_alpha(tmp_path: Path) -> None:
    assert read(tmp_path, "lora_config: {lora_rank: 8, lora_alpha: 16.9}").alpha == 16


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("ptuning2", "changes no weight"),
        ("prefixtuning", "changes no weight"),
        ("adapter", "activation"),
        ("low_rank_adapter", "activation"),
        ("slora", "many adapters"),
        ("Prefixtuning", "changes no weight"),
        ("next_years", "not known"),
    ],
)
def test_another_method_is_refused_with_its_reason(tmp_path: Path, method: str, reason: str) -> None:
    with pytest.raises(MismatchError, match=reason):
        read(tmp_path, f"pet_config: {{pet_type: {method}, pre_seq_len: 16}}")


@pytest.mark.parametrize("value", ["1", "0", "true", "[a]"])
def test_an_unknown_option_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(MismatchError, match="pet_config: new_option"):
        read(tmp_path, f"pet_config: {{lora_rank: 8, new_option: {value}}}")


@pytest.mark.parametrize("value", ["null", "false", "[]", "''"])
def test_an_unknown_option_that_is_not_set_is_accepted(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, f"pet_config: {{lora_rank: 8, new_option: {value}}}").rank == 8


def test_a_run_without_lora_is_refused_and_names_what_it_includes(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"It includes \['base.yaml'\]"):
        read(tmp_path, "base_config: ['base.yaml']\nmodel: {model_config: {type: LlamaConfig}}")


def test_two_sections_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="several sections"):
        read(tmp_path, f"{TODAY}\npet_config: {{lora_rank: 8, lora_alpha: 32}}")


def test_two_sections_that_say_the_same_are_accepted(tmp_path: Path) -> None:
    section = "{pet_type: lora, lora_rank: 8, lora_alpha: 32}"
    assert read(tmp_path, f"model: {{model_config: {{pet_config: {section}}}}}\npet_config: {section}").alpha == 32


@pytest.mark.parametrize(
    "section", ["lora_rank: eight", "lora_alpha: '16'", "target_modules: '('", "exclude_layers: ['(']"]
)
def test_a_value_of_the_wrong_type_is_corrupt(tmp_path: Path, section: str) -> None:
    with pytest.raises(CorruptInputError, match=section.partition(":")[0]):
        read(tmp_path, f"pet_config:\n  lora_dropout: 0\n  {section}")


def manifest(tmp_path: Path, **changes: object) -> LoraConfig:
    # The keys that MindFormers 2.1's CheckpointCallback writes.
    values = {
        "format": "mindformers_pynative_lora_adapter_v1",
        "lora_config": {"target_modules": r".*experts$", "lora_rank": 4, "lora_alpha": 8},
        "base_fingerprint": "0123",
        "global_step": 7,
        "consumed_samples": 56,
    }
    path = tmp_path / "mindformers_adapter_config.json"
    path.write_text(json.dumps({**values, **changes}))
    return read_mindformers_adapter_config(path)


def test_a_manifest_is_read(tmp_path: Path) -> None:
    config = manifest(tmp_path)
    assert (config.rank, config.alpha, config.target_modules) == (4, 8.0, ".*experts$")
    assert config.selection is Selection.MINDFORMERS_PYNATIVE


@pytest.mark.parametrize("version", ["mindformers_pynative_lora_adapter_v2", None, 1])
def test_a_manifest_of_another_version_is_refused(tmp_path: Path, version: object) -> None:
    with pytest.raises(MismatchError, match="format"):
        manifest(tmp_path, format=version)


def test_a_manifest_with_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="use_dora"):
        manifest(tmp_path, lora_config={"lora_rank": 4, "use_dora": True})


def test_a_manifest_without_a_lora_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="lora_config"):
        manifest(tmp_path, lora_config=None)
