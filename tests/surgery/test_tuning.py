"""What a file says of tuning, in every form that it may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from surgery.adapter_files import adapter_config
from surgery.config_files import read_adapter_config
from surgery.errors import CorruptInputError, MismatchError
from surgery.methods import LoraPetConfig, NetworkShape, PrefixTuningConfig, Ptuning2Config
from surgery.tuning import parse_tuning, read_tuning

LORA: dict[str, Any] = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "target_modules": ".*wq|.*wv"}
PEFT: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.25,
    "target_modules": ["q_proj", "v_proj"],
}
MODEL = {"num_layers": 32, "num_heads": 32, "hidden_size": 4096}


def run(pet_config: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {"model": {"model_config": {**MODEL, **model, "pet_config": pet_config}, "arch": {"type": "L"}}}


OLDER = {
    "model": {
        "model_config": MODEL,
        "arch": {
            "type": "GPT2WithLora",
            "pet": {
                "pet_type": "lora",
                "pet_config": {
                    "in_channels": 768,
                    "out_channels": 768,
                    "lora_rank": 4,
                    "lora_alpha": 8,
                    "reg_rules": ".*wq|.*wv",
                },
            },
        },
    }
}


@pytest.mark.parametrize(
    "values", [run(LORA), OLDER, LORA, {"pet_config": LORA}], ids=["today", "older", "section", "pet_config"]
)
def test_every_form_says_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "run.json").write_text(json.dumps(values))
    for path in (tmp_path / "run.yaml", tmp_path / "run.json"):
        tuning = read_tuning(path)
        assert tuning.config == LoraPetConfig(lora_rank=4, lora_alpha=8, target_modules=".*wq|.*wv")
        assert (tuning.peft, tuning.source) == (None, str(path))
        assert (tuning.run is not None) == ("model" in values)


def test_pefts_configuration_keeps_its_rules(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT))
    tuning = read_tuning(tmp_path)
    assert tuning.config == LoraPetConfig(lora_rank=4, lora_alpha=8, lora_dropout=0.25)
    assert tuning.peft is not None
    assert tuning.peft.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora: expected nothing: MindFormers' LoRA doesn't know DoRA's magnitudes"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "gaussian"}, "init_lora_weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": None}, "no r"),
        ({"lora_alpha": None}, "no lora_alpha"),
    ],
)
def test_what_mindformers_lora_lacks_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message.replace("(", r"\(")):
        parse_tuning({**PEFT, **change})


def test_all_that_is_refused_is_told_at_once() -> None:
    with pytest.raises(MismatchError) as caught:
        parse_tuning({**PEFT, "use_dora": True, "bias": "all", "rank_pattern": {"x": 2}})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rnk": 4}, "Did you mean lora_rank"),
        ({"lora_rank": "8"}, "lora_rank"),
        ({"lora_rank": 0}, "a whole number of at least 1"),
        ({"lora_dropout": 1.5}, "from 0 to below 1"),
        ({"target_modules": "("}, "a regular expression"),
    ],
)
def test_unknown_options_and_wrong_values_are_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptInputError, match=message):
        parse_tuning(run({**LORA, **change}))


def test_a_dropout_of_either_name_is_one_option() -> None:
    for name in ("dropout_rate", "dropout_prob"):
        config = parse_tuning(run({"pet_type": "ptuning2", name: 0.25})).config
        assert isinstance(config, Ptuning2Config)
        assert config.dropout_prob == 0.25
        other = parse_tuning(run({"pet_type": "prefixtuning", name: 0.25})).config
        assert isinstance(other, PrefixTuningConfig)
        assert other.dropout_rate == 0.25
    with pytest.raises(CorruptInputError, match="two names of one option"):
        parse_tuning(run({"pet_type": "ptuning2", "dropout_rate": 0.1, "dropout_prob": 0.2}))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ({}, (32, 32, 128)),
        ({"n_kv_heads": 8}, (32, 8, 128)),
        ({"multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128}, (32, 2, 128)),
        ({"multi_query_group_num": 2}, (32, 32, 128)),
        ({"num_heads": None, "num_attention_heads": 16}, (32, 16, 256)),
        ({"num_layers": None, "num_hidden_layers": 4, "num_key_value_heads": 4}, (4, 4, 128)),
        ({"hidden_size": None, "kv_channels": 64}, (32, 32, 64)),
    ],
)
def test_a_networks_shape_is_read_under_all_of_mindformers_names(
    model: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    assert parse_tuning(run({"pet_type": "ptuning2"}, **model)).network_shape() == NetworkShape(*shape)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"hidden_size": None}, "no kv_channels or hidden_size"),
        ({"kv_channels": 64}, r"hidden_size 4096, 32 heads of 64 \(kv_channels\)"),
        ({"num_heads": 33}, "heads that share the hidden size evenly"),
        ({"num_layers": 0}, "no num_layers"),
    ],
)
def test_a_shape_that_is_missing_or_contradicts_itself_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        parse_tuning(run({"pet_type": "ptuning2"}, **model)).network_shape()


@pytest.mark.parametrize(
    ("text", "dtype"), [("bfloat16", "bf16"), ("mstype.float16", "fp16"), ("float32", "fp32"), (None, None)]
)
def test_the_networks_type_is_that_of_its_configuration(text: str | None, dtype: str | None) -> None:
    for name in ("param_init_type", "params_dtype"):
        assert parse_tuning(run(LORA, **{name: text})).param_init_type() == dtype


@pytest.mark.parametrize("values", [LORA, {**LORA, "exclude_layers": ["0"]}, PEFT])
def test_what_is_written_beside_an_adapter_says_the_same_again_and_is_read_by_a_merge(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    tuning = parse_tuning(values)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(adapter_config(tuning.config, "pet-fp1:0", tuning.peft)))
    again, merged = read_tuning(path), read_adapter_config(path)
    assert again.config == tuning.config
    assert (merged.rank, merged.alpha) == (4, 8)
    if tuning.peft is not None:
        assert again.peft is not None
        assert again.peft.target_modules == tuning.peft.target_modules == merged.target_modules


def test_a_prefixs_configuration_is_written_and_read_likewise(tmp_path: Path) -> None:
    tuning = parse_tuning({"pet_type": "ptuning2", "pre_seq_len": 7})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(adapter_config(tuning.config, "pet-fp1:0", tuning.peft)))
    assert read_tuning(path).config == tuning.config


def test_a_configuration_without_tuning_is_refused() -> None:
    with pytest.raises(MismatchError, match="no section on tuning"):
        parse_tuning({"model": {"model_config": MODEL}})
