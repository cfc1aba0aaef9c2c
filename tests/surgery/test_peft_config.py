"""PEFT's `adapter_config.json`: read as it is meant, and refused where folding would be a guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery.config import Selection
from surgery.errors import CorruptInputError, InputMissingError, MismatchError
from surgery.peft_config import parse_peft_config, read_peft_config

# What PEFT 0.21.2's save_pretrained writes for LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"],
# task_type="CAUSAL_LM", rank_pattern={"^model.layers.0.self_attn.q_proj": 4}, alpha_pattern={"v_proj": 32}).
SAVED: dict[str, Any] = json.loads("""{
  "alora_invocation_tokens": null, "alpha_pattern": {"v_proj": 32}, "arrow_config": null, "auto_mapping": null,
  "base_model_name_or_path": null, "bias": "none", "corda_config": null, "ensure_weight_tying": false,
  "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
  "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
  "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 16, "lora_bias": false, "lora_dropout": 0.0,
  "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
  "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 8,
  "rank_pattern": {"^model.layers.0.self_attn.q_proj": 4}, "revision": null, "target_modules": ["v_proj", "q_proj"],
  "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
  "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null
}""")

# What MindFormers 1.9.0's LoraModel.save_pet_config writes for LoraConfig(target_modules=".*wq|.*wv").
BY_MINDFORMERS: dict[str, Any] = json.loads("""{
  "base_model_name_or_path": "none", "bias": "none", "lora_alpha": 16, "lora_bias": false, "lora_dropout": 0.01,
  "peft_type": "LORA", "r": 8, "target_modules": [".*wq", ".*wv"], "task_type": "CAUSAL_LM"
}""")


def parse(**changes: Any) -> Any:
    return parse_peft_config({**SAVED, **changes}, "adapter_config.json")


def test_a_saved_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(SAVED))
    config = read_peft_config(path)
    assert (config.source, config.rank, config.alpha, config.bias) == (str(path), 8, 16.0, "none")
    assert config.target_modules == ("v_proj", "q_proj")
    assert config.selection is Selection.PEFT
    assert config.scaling("model.layers.0.self_attn.q_proj") == 4
    assert config.scaling("model.layers.0.self_attn.v_proj") == 4
    assert config.scaling("model.layers.1.self_attn.q_proj") == 2


def test_options_that_folding_heeds_are_kept() -> None:
    config = parse(
        use_rslora=True,
        use_dora=True,
        fan_in_fan_out=True,
        lora_bias=True,
        bias="lora_only",
        modules_to_save=["lm_head"],
        exclude_modules=r".*\.7\..*",
        layers_to_transform=[0, 1],
        layers_pattern="layers",
        target_modules="all-linear",
        base_model_name_or_path="a/b",
    )
    assert config.use_rslora
    assert config.use_dora
    assert config.fan_in_fan_out
    assert config.lora_bias
    assert (config.bias, config.modules_to_save, config.exclude_modules) == ("lora_only", ("lm_head",), r".*\.7\..*")
    assert (config.layers_to_transform, config.layers_pattern) == ((0, 1), "layers")
    assert (config.target_modules, config.base_model_name) == ("all-linear", "a/b")


def test_an_option_that_is_absent_is_unknown_rather_than_pefts_default() -> None:
    config = parse_peft_config({"peft_type": "LORA"}, "adapter_config.json")
    assert (config.rank, config.alpha, config.target_modules) == (None, None, None)


def test_the_file_that_mindformers_writes_selects_as_mindformers_does() -> None:
    config = parse_peft_config(BY_MINDFORMERS, "adapter_config.json")
    assert (config.selection, config.target_modules) == (Selection.MINDFORMERS, ".*wq|.*wv")
    assert (config.rank, config.alpha) == (8, 16.0)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("PREFIX_TUNING", "changes no weight"),
        ("ADAPTION_PROMPT", "changes no weight"),
        ("IA3", "is not B @ A"),
        ("LOHA", "is not B @ A"),
        ("ADALORA", "is not B @ A"),
        ("XLORA", "depends on the input"),
        ("NEXT_YEARS", "is not B @ A"),
        (None, "does not name a method"),
    ],
)
def test_another_method_is_refused_with_its_reason(method: str | None, reason: str) -> None:
    with pytest.raises(MismatchError, match=reason):
        parse(peft_type=method)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "next_years"),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("trainable_token_indices", [1, 2]),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {}),
        ("kasa_config", {}),
        ("enable_lora", [True, False, True]),
        ("an_option_of_next_year", 1),
        ("an_option_of_next_year", 0),
    ],
)
def test_an_option_with_which_folding_would_be_a_guess_is_refused(option: str, value: Any) -> None:
    with pytest.raises(MismatchError, match=f"adapter_config.json: {option}"):
        parse(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("init_lora_weights", init) for init in (True, False, None, "gaussian", "eva", "orthogonal", "mica")],
        *[("an_option_of_next_year", value) for value in (None, False, "", [], {})],
        ("target_parameters", []),
        ("velora_config", {"num_groups": 64}),
        ("monteclora_config", {"num_samples": 8}),
        ("eva_config", {"rho": 2.0}),
        ("lora_dropout", 0.1),
        ("runtime_config", {"ephemeral_gpu_offload": True}),
        ("merge_weights", True),
    ],
)
def test_an_option_that_leaves_the_weights_alone_is_accepted(option: str, value: Any) -> None:
    assert parse(**{option: value}) == parse()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("r", "8"),
        ("r", 8.0),
        ("r", True),
        ("lora_alpha", "16"),
        ("lora_alpha", [16]),
        ("use_dora", "yes"),
        ("bias", "some"),
        ("modules_to_save", "lm_head"),
        ("target_modules", [1]),
        ("target_modules", "(q_proj"),
        ("rank_pattern", {"q_proj": 1.5}),
        ("rank_pattern", {"(": 1}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"q_proj": None}),
        ("layers_to_transform", ["1"]),
        ("layers_pattern", ["("]),
        ("peft_type", 1),
    ],
)
def test_a_value_of_the_wrong_type_is_corrupt(option: str, value: Any) -> None:
    with pytest.raises(CorruptInputError, match=f"adapter_config.json: {option}"):
        parse(**{option: value})


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(MismatchError) as caught:
        parse(use_qalora=True, kasa_config={"beta": 1}, init_lora_weights="pissa")
    assert len(caught.value.problems) == 3


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        read_peft_config(tmp_path / "adapter_config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modules_to_save", ["("]),
        ("layers_pattern", "(?P<index>x)"),
        ("layers_pattern", ["layers", "(?P<index>x)"]),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", {"(": 4}),
        ("exclude_modules", "("),
    ],
)
def test_what_cannot_be_the_part_of_an_expression_that_it_is_used_as_is_corrupt(name: str, value: object) -> None:
    with pytest.raises(CorruptInputError, match=f"{name}: expected a regular expression"):
        parse(**{name: value})
