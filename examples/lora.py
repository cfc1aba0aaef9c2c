"""A LoRA adapter that no training made: reproducible noise of the size that fine-tuning leaves, in two spellings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_tools import save_checkpoint
from examples.smollm2 import mindformers_name

__all__ = ["Lora", "random_lora", "write_mindpet", "write_peft"]


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter in memory.

    Attributes:
        alpha: LoRA's alpha.
        rank: LoRA's rank.
        targets: The last part of the adapted layers' Hugging Face names, e.g. `q_proj`.
        matrices: Hugging Face name of the layer to A `(rank, in)` and B `(out, rank)`, both float32.
    """

    alpha: int
    rank: int
    targets: tuple[str, ...]
    matrices: Mapping[str, tuple[np.ndarray, np.ndarray]]


def random_lora(
    tensors: Mapping[str, np.ndarray],
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    rank: int = 8,
    alpha: int = 16,
    relative_norm: float = 0.02,
    seed: int = 0,
) -> Lora:
    """Make an adapter for some layers of a model; the same arguments give the same numbers.

    Args:
        tensors: The model's weights by Hugging Face name, `(out, in)`.
        targets: The last part of the names of the layers that are adapted.
        rank: Rank of the adapter.
        alpha: Alpha of the adapter; B @ A is multiplied by alpha / rank.
        relative_norm: Norm of what is added to a weight over the norm of the weight.
        seed: Seed of the generator.
    """
    generator = np.random.default_rng(seed)
    matrices = {}
    for name, weight in tensors.items():
        layer = name.removesuffix(".weight")
        if layer.rsplit(".", 1)[-1] not in targets:
            continue
        out_size, in_size = weight.shape
        a = generator.standard_normal((rank, in_size), np.float32) / np.float32(np.sqrt(in_size))
        b = generator.standard_normal((out_size, rank), np.float32)
        norm = np.linalg.norm(b.astype(np.float64) @ a) * alpha / rank
        b *= np.float32(relative_norm * np.linalg.norm(weight.astype(np.float64)) / norm)
        matrices[layer] = (a, b)
    return Lora(alpha, rank, targets, matrices)


def write_mindpet(lora: Lora, folder: Path) -> None:
    """Write, or replace, `adapter_model.ckpt` in MindPet's spelling and MindFormers' `adapter_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, (a, b) in lora.matrices.items():
        cell = mindformers_name(f"{layer}.weight").removesuffix(".weight")
        tensors[f"{cell}.mindpet_delta_lora_a"] = a
        tensors[f"{cell}.mindpet_delta_lora_b"] = b
    save_checkpoint(folder / "adapter_model.ckpt", tensors, force=True)
    cells = {re.sub(r".*\.(\w+)\.weight", r".*\1", mindformers_name(f"{layer}.weight")) for layer in lora.matrices}
    _write_config(lora, folder, sorted(cells), base="none")  # as MindFormers writes it, which has no name for the base


def write_peft(lora: Lora, folder: Path) -> None:
    """Write, or replace, the folder that `peft.PeftModel.from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, (a, b) in lora.matrices.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = b
    save_checkpoint(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"}, force=True)
    _write_config(lora, folder, list(lora.targets))


def _write_config(lora: Lora, folder: Path, target_modules: list[str], base: str | None = None) -> None:
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "lora_alpha": lora.alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
