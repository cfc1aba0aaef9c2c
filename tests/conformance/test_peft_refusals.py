"""What PEFT saves and no merge may guess at: exit code 5, the reason, and nothing written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from commands import run_here
from peft import LoraConfig, PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_models import NETWORKS, load_adapted, logits, lora, shake, write_adapter, write_base
from peft_reference import assert_rounded, assert_speaks_alike, merged_by_peft, read_folder
from transformers import AutoModelForSequenceClassification, LlamaConfig, Qwen2MoeConfig

from ckpt_tools import merge
from ckpt_tools.cli.merge import merge_command
from surgery.errors import MismatchError

LLAMA = NETWORKS["llama"]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(LLAMA, tmp_path_factory.mktemp("base"), torch.float32)


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs pet-merge, which must exit with 5 and leave nothing behind, and returns its message."""

    def refuse(*arguments: str | Path) -> str:
        output = tmp_path / "output"
        output.mkdir()
        code = run_here(merge_command, *arguments, "-o", output / "merged")
        message = capsys.readouterr().err
        assert code == 5, message
        assert list(output.iterdir()) == []
        return message

    return refuse


# What a method needs beyond its defaults to fit a tiny network.
SIZES: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_layers": 1, "adapter_len": 4},
    "C3A": {"block_size": 8},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "VBLORA": {"vector_length": 8, "num_vectors": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
}
# AdaMSS needs scikit-learn; X-LoRA is made of LoRA adapters that lie elsewhere.
METHODS = [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in {"LORA", "ADAMSS", "XLORA"}]


@pytest.fixture(scope="module")
def method_adapters(base: Path) -> Callable[[str], Path]:
    """Saves the adapter of a method once."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            config = _method_config(method)
            made[method] = write_adapter(LLAMA, base, base.parent / method, config)
        return made[method]

    return make


def _method_config(method: str) -> PeftConfig:
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)]
    known = {entry.name for entry in dataclasses.fields(config_class)}
    options: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "v_proj"],
        "num_virtual_tokens": 4,
    }
    if method == "ADAPTION_PROMPT":
        del options["target_modules"]
    return config_class(**{name: value for name, value in options.items() if name in known}, **SIZES.get(method, {}))


@pytest.mark.parametrize("method", METHODS)
def test_another_method_is_refused_by_its_configuration(
    method: str, method_adapters: Callable[[str], Path], base: Path, refusal: Refusal
) -> None:
    message = refusal(base, method_adapters(method))
    assert f"expected LORA, found {method}" in message


@pytest.mark.parametrize("method", METHODS)
def test_another_method_is_refused_by_its_keys_alone(
    method: str, method_adapters: Callable[[str], Path], base: Path, tmp_path: Path, refusal: Refusal
) -> None:
    source = method_adapters(method) / "adapter_model.safetensors"
    (tmp_path / "adapter.safetensors").write_bytes(source.read_bytes())
    refusal(base, tmp_path / "adapter.safetensors", "--alpha", "8")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"use_bdlora": peft.tuners.lora.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)}, "use_bdlora"),
        ({"kasa_config": peft.tuners.lora.config.KasaConfig()}, "kasa_config"),
    ],
    ids=str,
)
def test_a_lora_that_is_more_than_a_product_is_refused(
    options: dict[str, Any], named: str, base: Path, tmp_path: Path, refusal: Refusal
) -> None:
    adapter = write_adapter(LLAMA, base, tmp_path / "adapter", lora(target_modules=["q_proj"], **options))
    assert f"adapter_config.json: {named}" in refusal(base, adapter)


def test_parameters_of_experts_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    config = Qwen2MoeConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=40,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    network = dataclasses.replace(LLAMA, config=config)
    base = write_base(network, tmp_path / "base", torch.float32)
    options = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    adapter = write_adapter(network, base, tmp_path / "adapter", lora(**options))
    assert "adapter_config.json: target_parameters" in refusal(base, adapter)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_changed_the_base_is_merged_once_it_is_converted(
    init: str, base: Path, tmp_path: Path
) -> None:
    model = get_peft_model(LLAMA.load(base, torch.float32), lora(target_modules=["q_proj"], init_lora_weights=init))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    shake(model, 2)
    model.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))

    merge(base, tmp_path / "adapter", output=tmp_path / "merged")

    adapted = load_adapted(LLAMA, base, tmp_path / "adapter")
    assert_speaks_alike(LLAMA, tmp_path / "merged", logits(adapted), base)
    assert assert_rounded(read_folder(tmp_path / "merged"), read_folder(base), merged_by_peft(adapted)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False},
        {"lora_dropout": 0.2},
        {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=8)},
        {"monteclora_config": peft.tuners.lora.config.MontecloraConfig()},
        {"loftq_config": {}},
        {"task_type": "CAUSAL_LM", "inference_mode": False},
    ],
    ids=str,
)
def test_an_option_of_the_training_alone_is_accepted(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(LLAMA, base, tmp_path / "adapter", lora(target_modules=["q_proj"], **options))
    merge(base, adapter, output=tmp_path / "merged")
    adapted = load_adapted(LLAMA, base, adapter)
    assert_speaks_alike(LLAMA, tmp_path / "merged", logits(adapted), base)
    assert assert_rounded(read_folder(tmp_path / "merged"), read_folder(base), merged_by_peft(adapted)) == 2


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(LLAMA, base, tmp_path / "adapter", lora(target_modules=["q_proj", "down_proj"]))


def _edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("value", [True, 1, 0, "linear", {"a": None}])
def test_an_option_that_is_not_known_is_refused_where_it_is_set(
    value: Any, base: Path, adapter: Path, refusal: Refusal
) -> None:
    _edit_json(adapter / "adapter_config.json", use_tomorrows_lora=value)
    message = refusal(base, adapter)
    assert "use_tomorrows_lora" in message
    assert "not known" in message


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_option_that_is_not_known_is_accepted_where_it_is_not_set(
    value: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    _edit_json(adapter / "adapter_config.json", use_tomorrows_lora=value)
    merge(base, adapter, output=tmp_path / "merged")


def test_a_quantised_base_is_refused_by_its_configuration(adapter: Path, tmp_path: Path, refusal: Refusal) -> None:
    quantised = write_base(LLAMA, tmp_path / "quantised", torch.float32)
    _edit_json(quantised / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    message = refusal(quantised, adapter)
    assert "gptq" in message
    assert "quantised" in message


@pytest.mark.parametrize("sizes", [{"hidden_size": 64}, {"num_hidden_layers": 1}, {"intermediate_size": 88}], ids=str)
def test_an_adapter_of_another_base_is_refused(
    sizes: dict[str, int], adapter: Path, tmp_path: Path, refusal: Refusal
) -> None:
    config = LlamaConfig(**{**LLAMA.config.to_dict(), "head_dim": None, **sizes})
    other = write_base(dataclasses.replace(LLAMA, config=config), tmp_path / "other", torch.float32)
    message = refusal(other, adapter)
    assert "down_proj" in message


def test_matrices_of_a_layer_that_was_not_selected_are_refused(base: Path, adapter: Path, refusal: Refusal) -> None:
    """PEFT ignores them, with a warning at most: the file and its configuration do not belong together."""
    _edit_json(adapter / "adapter_config.json", target_modules=["q_proj"])
    message = refusal(base, adapter)
    assert "down_proj" in message
    assert "not among target_modules" in message
    assert "q_proj.lora" not in message


def test_a_rank_other_than_the_files_is_refused(base: Path, adapter: Path, refusal: Refusal) -> None:
    _edit_json(adapter / "adapter_config.json", r=8)
    assert "rank" in refusal(base, adapter)


def test_an_adapter_in_a_pickle_is_refused_with_the_way_out(
    base: Path, adapter: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 48)},
        adapter / "adapter_model.bin",
    )
    code = run_here(merge_command, base, adapter, "-o", tmp_path / "merged")
    message = capsys.readouterr().err
    assert code in (3, 4), message
    assert "adapter_model.bin" in message
    assert "safetensors" in message
    assert not (tmp_path / "merged").exists()


def test_a_vocabulary_that_grew_is_refused_with_the_way_out(base: Path, tmp_path: Path, refusal: Refusal) -> None:
    model = LLAMA.load(base, torch.float32)
    model.resize_token_embeddings(104)
    adapted = get_peft_model(model, lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
    adapted.save_pretrained(tmp_path / "adapter")
    message = refusal(base, tmp_path / "adapter")
    assert "(104, 48)" in message
    assert "Resize the base" in message


def test_a_head_that_the_base_lacks_is_refused_with_a_way_out_that_works(base: Path, tmp_path: Path) -> None:
    """The usual way to a classifier: the base is a language model, and `task_type` has PEFT save the fresh head."""
    classifier = NETWORKS["llama-classifier"]
    options = {"num_labels": 3, "pad_token_id": 0, "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(base, **options)
    adapted = get_peft_model(model, lora(target_modules=["q_proj"], task_type="SEQ_CLS"))
    shake(adapted, 2)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(MismatchError, match=r"no score.weight in the base. The training added this layer"):
        merge(base, tmp_path / "adapter", output=tmp_path / "merged")

    AutoModelForSequenceClassification.from_pretrained(base, **options).save_pretrained(tmp_path / "with-head")
    merge(tmp_path / "with-head", tmp_path / "adapter", output=tmp_path / "merged")

    found, expected = logits(classifier.load(tmp_path / "merged")), logits(adapted.eval().double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_lora_bias_without_a_bias_in_the_base_is_refused_as_peft_does(
    base: Path, tmp_path: Path, refusal: Refusal
) -> None:
    config: LoraConfig = lora(target_modules=["q_proj"], lora_bias=True)
    adapter = write_adapter(LLAMA, base, tmp_path / "adapter", config)
    assert "q_proj.bias" in refusal(base, adapter)
    with pytest.raises(RuntimeError, match="no bias"):
        load_adapted(LLAMA, base, adapter).merge_and_unload()
