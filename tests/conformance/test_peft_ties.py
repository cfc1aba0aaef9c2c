"""Adapters of tied weights: what is merged speaks as base and adapter do, in which one of the two alone is adapted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_models import DTYPES, NETWORKS, load_adapted, logits, lora, write_adapter, write_base
from peft_reference import assert_rounded, assert_speaks_alike, merged_by_peft, read_folder
from safetensors.torch import load_file, save_file

from ckpt_tools import merge
from ckpt_tools.reports import MergeReport
from surgery.errors import MismatchError

Bases = Callable[[str, str], Path]

EMBEDDINGS = {
    "qwen2": "model.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
}
HEADS = {"qwen2": "lm_head.weight", "gpt2": "lm_head.weight", "bert": "cls.predictions.decoder.weight"}
TYING = {"ensure_weight_tying": True}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Makes each base once: (network, type) -> folder."""
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, dtype: str) -> Path:
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
            made[name, dtype] = write_base(NETWORKS[name], folder, DTYPES[dtype])
        return made[name, dtype]

    return make


def _merge_and_compare(name: str, base: Path, adapter: Path, output: Path) -> MergeReport:
    """Merge, and compare logits and weights with PEFT's."""
    report = merge(base, adapter, output=output)
    adapted = load_adapted(NETWORKS[name], base, adapter)
    assert_speaks_alike(NETWORKS[name], output, logits(adapted), base)
    assert_rounded(read_folder(output), read_folder(base), merged_by_peft(adapted))
    return report


def _is_tied(name: str, folder: Path) -> bool:
    model = NETWORKS[name].load(folder)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (HEADS[name] in read_folder(folder)) != tied
    config = json.loads((folder / "config.json").read_text())
    assert config.get("tie_word_embeddings", True) == tied
    return tied


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen2", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("gpt2", {"target_modules": ["wte"]}),
        ("bert", {"target_modules": ["word_embeddings"]}),
        ("gpt2", {"target_modules": ["wte", "c_proj"], "use_dora": True}),
        ("qwen2", {"target_modules": ["lm_head"]}),
        ("gpt2", {"target_modules": ["lm_head", "c_attn", "c_proj"]}),
        ("bert", {"target_modules": ["decoder"]}),
        ("bert", {"target_modules": ["decoder"], "bias": "lora_only"}),
        ("bert", {"target_modules": ["query", "word_embeddings"], "bias": "all"}),
        ("qwen2", {"target_modules": ["lm_head"], "use_dora": True}),
        ("qwen2", {"target_modules": ["embed_tokens", "lm_head"]}),
        ("qwen2", {"target_modules": ["embed_tokens"], **TYING}),
        ("qwen2", {"target_modules": ["lm_head"], **TYING}),
        ("qwen2", {"target_modules": ["embed_tokens", "lm_head"], **TYING}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["decoder"]}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["cls"]}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("qwen2", {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}),
    ],
    ids=str,
)
def test_adapting_one_of_a_tied_pair_unties_it_and_says_so(
    name: str, options: dict[str, Any], dtype: str, bases: Bases, tmp_path: Path
) -> None:
    base = bases(name, dtype)
    adapter = write_adapter(NETWORKS[name], base, tmp_path / "adapter", lora(**options))
    report = _merge_and_compare(name, base, adapter, tmp_path / "merged")
    assert not _is_tied(name, tmp_path / "merged")
    assert any(HEADS[name] in text and EMBEDDINGS[name] in text and "tied" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen2", {"target_modules": ["q_proj"]}),
        ("bert", {"target_modules": ["query"], "bias": "all"}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], **TYING}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], **TYING}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], **TYING}),
    ],
    ids=str,
)
def test_what_changes_both_of_a_tied_pair_alike_leaves_it_tied(
    name: str, options: dict[str, Any], bases: Bases, tmp_path: Path
) -> None:
    base = bases(name, "bf16")
    adapter = write_adapter(NETWORKS[name], base, tmp_path / "adapter", lora(**options))
    report = _merge_and_compare(name, base, adapter, tmp_path / "merged")
    assert _is_tied(name, tmp_path / "merged")
    assert not any("tied" in text for text in report.warnings)


def _shift(adapter: Path, *names: str) -> None:
    """Move weights of an adapter's file, all by the same values."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    shift = torch.randn(tensors[names[0]].shape, generator=torch.Generator().manual_seed(3))
    moved = {name: tensors[name] + 0.1 * shift.to(tensors[name].dtype) for name in names}
    save_file({**tensors, **moved}, adapter / "adapter_model.safetensors", {"format": "pt"})


def test_a_saved_embedding_goes_to_the_head_too_and_its_update_does_not(bases: Bases, tmp_path: Path) -> None:
    base = bases("qwen2", "bf16")
    adapter = write_adapter(NETWORKS["qwen2"], base, tmp_path / "adapter", lora(target_modules=["embed_tokens"]))
    _shift(adapter, "base_model.model.model.embed_tokens.base_layer.weight")
    _merge_and_compare("qwen2", base, adapter, tmp_path / "merged")
    assert not _is_tied("qwen2", tmp_path / "merged")


def test_a_saved_head_goes_to_the_embedding_too_and_its_update_does_not(bases: Bases, tmp_path: Path) -> None:
    base = bases("qwen2", "bf16")
    adapter = write_adapter(NETWORKS["qwen2"], base, tmp_path / "adapter", lora(target_modules=["lm_head"]))
    _shift(adapter, "base_model.model.lm_head.base_layer.weight")
    _merge_and_compare("qwen2", base, adapter, tmp_path / "merged")
    assert not _is_tied("qwen2", tmp_path / "merged")


def test_a_saved_embedding_that_was_not_adapted_stays_tied(bases: Bases, tmp_path: Path) -> None:
    base = bases("qwen2", "bf16")
    adapter = write_adapter(NETWORKS["qwen2"], base, tmp_path / "adapter", lora(target_modules=["q_proj"]))
    tensors = load_file(adapter / "adapter_model.safetensors")
    embedding = read_folder(base)[EMBEDDINGS["qwen2"]]
    names = [f"base_model.model.{name}" for name in (EMBEDDINGS["qwen2"], HEADS["qwen2"])]
    save_file(
        {**tensors, **{name: embedding.clone() for name in names}},
        adapter / "adapter_model.safetensors",
        {"format": "pt"},
    )
    _shift(adapter, *names)
    _merge_and_compare("qwen2", base, adapter, tmp_path / "merged")
    assert _is_tied("qwen2", tmp_path / "merged")


def _without_first_component(name: str, prefix: str, base: Path, folder: Path) -> Path:
    """A base as the first checkpoints on the Hub were saved."""
    shutil.copytree(base, folder)
    tensors = {key.removeprefix(prefix): tensor for key, tensor in read_folder(base).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    NETWORKS[name].load(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["lm_head", "c_attn", "c_proj"]},
        {"target_modules": ["wte", "c_attn"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_gpt2_as_the_hub_has_it_is_untied_too(options: dict[str, Any], bases: Bases, tmp_path: Path) -> None:
    base = _without_first_component("gpt2", "transformer.", bases("gpt2", "fp32"), tmp_path / "base")
    adapter = write_adapter(NETWORKS["gpt2"], base, tmp_path / "adapter", lora(**options))
    merge(base, adapter, output=tmp_path / "merged")
    assert_speaks_alike(
        NETWORKS["gpt2"], tmp_path / "merged", logits(load_adapted(NETWORKS["gpt2"], base, adapter)), base
    )
    assert not _is_tied("gpt2", tmp_path / "merged")


def test_an_embedding_whose_head_is_tied_under_no_known_name_is_refused(bases: Bases, tmp_path: Path) -> None:
    base = _without_first_component("bert", "bert.", bases("bert", "fp32"), tmp_path / "base")
    adapter = write_adapter(NETWORKS["bert"], base, tmp_path / "adapter", lora(target_modules=["word_embeddings"]))
    with pytest.raises(MismatchError, match="the output head may be tied"):
        merge(base, adapter, output=tmp_path / "merged")
