"""The demo's real model in the hands of transformers and PEFT: it speaks before a merge, and as PEFT's after one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ckpt_tools import merge, open_checkpoint
from examples.lora import Lora, random_lora, write_peft
from examples.numpy_llama import forward
from examples.smollm2 import SmolLM2, find_gguf, hf_config, mindformers_name, read_gguf, write_hf_folder

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def model() -> SmolLM2:
    return read_gguf(find_gguf())


@pytest.fixture(scope="module")
def base(model: SmolLM2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "base"
    write_hf_folder(model, folder)
    return folder


@pytest.fixture(scope="module")
def lora(model: SmolLM2) -> Lora:
    return random_lora(model.tensors, relative_norm=0.05)


@pytest.fixture(scope="module")
def adapter(lora: Lora, base: Path) -> Path:
    write_peft(lora, base.parent / "adapter")
    return base.parent / "adapter"


@pytest.fixture(scope="module")
def merged(base: Path, adapter: Path) -> Path:
    merge(base, adapter, output=base.parent / "merged")
    return base.parent / "merged"


def _load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _continue(folder: Path) -> str:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        ids = _load(folder, torch.float32).generate(**inputs, max_new_tokens=4, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


def _logits(network: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(ids).logits[0]


@pytest.fixture(scope="module")
def prompt_ids(base: Path) -> torch.Tensor:
    return AutoTokenizer.from_pretrained(base)(PROMPT, return_tensors="pt")["input_ids"]


def test_the_model_is_whole(model: SmolLM2) -> None:
    assert len(model.tensors) == 272
    assert model.parameters == 134_515_008


def test_the_base_names_the_capital_of_france(base: Path) -> None:
    assert _continue(base).startswith(" Paris")


def test_the_merged_model_names_it_too(merged: Path) -> None:
    assert _continue(merged).startswith(" Paris")


def test_a_zero_adapter_changes_no_bit(model: SmolLM2, base: Path, tmp_path: Path) -> None:
    write_peft(random_lora(model.tensors, relative_norm=0.0), tmp_path / "zero")
    merge(base, tmp_path / "zero", output=tmp_path / "merged")
    before, after = open_checkpoint(base).tensors, open_checkpoint(tmp_path / "merged").tensors
    assert list(before) == list(after)
    assert [name for name in before if before[name].read_all().tobytes() != after[name].read_all().tobytes()] == []


def test_merged_weights_are_those_of_peft_but_for_ties(base: Path, adapter: Path, merged: Path) -> None:
    """PEFT adds in fp32 when the base is loaded as fp32; its sums are then rounded to the base's bfloat16."""
    peft = PeftModel.from_pretrained(_load(base, torch.float32), adapter).merge_and_unload().state_dict()
    tensors = open_checkpoint(merged).tensors
    assert tensors.keys() == peft.keys() - {"lm_head.weight"}  # tied to the embedding: stored once
    for name, tensor in tensors.items():
        ours = torch.from_numpy(tensor.read_all().view(np.int16)).view(torch.bfloat16)
        different = int((ours != peft[name].to(torch.bfloat16)).sum())
        # Where the exact sum lies almost half-way between two numbers, the order of fp32 additions decides.
        assert different <= ours.numel() * 1e-4, f"{name}: {different} of {ours.numel()} elements differ"


def test_logits_are_those_of_base_and_adapter(
    base: Path, adapter: Path, merged: Path, prompt_ids: torch.Tensor
) -> None:
    expected = _logits(PeftModel.from_pretrained(_load(base, torch.float32), adapter), prompt_ids)
    found = _logits(_load(merged, torch.float32), prompt_ids)
    unmerged = _logits(_load(base, torch.float32), prompt_ids)
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    effect = torch.linalg.vector_norm(unmerged - expected) / torch.linalg.vector_norm(expected)
    # The merged weights are rounded to bfloat16, 2^-9 relative; base and adapter apart are not.
    assert error < 0.01
    assert effect > 10 * error
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_the_demos_numpy_forward_pass_agrees_with_transformers(
    model: SmolLM2, base: Path, prompt_ids: torch.Tensor
) -> None:
    weights = {mindformers_name(name): values.astype(np.float32) for name, values in model.tensors.items()}
    found = forward(weights, hf_config(model.metadata), prompt_ids[0].tolist())
    expected = _logits(_load(base, torch.float32), prompt_ids)[-1].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world",
        "It's 12345 o'clock",
        "  two  spaces\n\n\tand a tab",
        "café 中文 😀",
        "<|im_start|>user\nhi<|im_end|>",
    ],
)
def test_the_tokenizer_gives_the_text_back(base: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_the_tokenizer_takes_digits_apart_and_control_tokens_whole(base: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(base).tokenize("<|im_start|> 2024")
    assert tokens == ["<|im_start|>", "Ġ", "2", "0", "2", "4"]
