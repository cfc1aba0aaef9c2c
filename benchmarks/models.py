"""LLaMA-shaped checkpoints and adapters of any size, made of random numbers, for the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_tools.saving import save_checkpoint
from ckpt_tools.tensors.casts import cast_array
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics, region_shape


@dataclass(frozen=True, slots=True)
class Shape:
    """A LLaMA-like network.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        intermediate: Width of the feed-forward layers.
        vocabulary: Tokens.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names, as Hugging Face has them, and shapes, in the order of a checkpoint."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"{prefix}.self_attn.{name}.weight", (self.hidden, self.hidden)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield f"{prefix}.input_layernorm.weight", (self.hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)


SIZES = {
    "tiny": Shape(2, 256, 704, 1000),
    "1.5GB": Shape(12, 2048, 5632, 32000),
    "2GB": Shape(16, 2048, 5632, 32000),
    "13.5GB": Shape(32, 4096, 11008, 32000),
    "16GB": Shape(36, 4096, 12288, 32000),
}

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Noise(LazyTensor):
    """Normal numbers of standard deviation 0.02, made where they are read."""

    shape: tuple[int, ...]
    dtype: DType
    seed: int

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        generator = np.random.Generator(np.random.SFC64([self.seed, *(start for start, _ in region)]))
        values = generator.standard_normal(region_shape(region), np.float32)
        values *= np.float32(0.02)
        return cast_array(values, self.dtype)


def write_base(path: Path, size: str, dtype: str) -> None:
    """A base of `SIZES[size]`, in the format that the path's suffix names."""
    metadata = {"format": "pt"} if path.suffix == ".safetensors" else None
    save_checkpoint(path, _weights(size, dtype), metadata=metadata)


def write_hf_base(folder: Path, size: str) -> None:
    """A base in bf16 as a Hugging Face folder, which transformers loads."""
    folder.mkdir()
    write_base(folder / "model.safetensors", size, "bf16")
    shape = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // 128,
        "num_key_value_heads": shape.hidden // 128,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def write_strategy(path: Path, size: str, ranks: int, axes: str = "as trained", stages: int = 1) -> None:
    """A strategy for such a base: a JSON file, or of several stages a folder with one for each.

    Args:
        path: Where it goes.
        size: Which of `SIZES`.
        ranks: Devices of a stage.
        axes: `as trained`: o_proj and down_proj cut on axis 1, the others on axis 0; or `0` or `1` for all.
        stages: Stages of the pipeline; each holds as many layers.
    """
    layouts: list[dict[str, object]] = [{} for _ in range(stages)]
    for name, shape in SIZES[size].weights():
        parts = name.split(".")
        stage = int(parts[2]) * stages // SIZES[size].layers if parts[1] == "layers" else stages - 1
        stage = 0 if "embed" in name else stage
        axis = int(axes) if axes.isdigit() else int("o_proj" in name or "down_proj" in name)
        layouts[stage][name] = {
            "dev_matrix": [ranks],
            "tensor_map": [0 if axis == position and len(shape) > 1 else -1 for position in range(len(shape))],
            "param_split_shape": [],
            "indices_offset": [],
            "field": 0,
            "opt_weight_shard_step": 0,
            "opt_weight_shard_size": 0,
        }
    if stages > 1:
        path.mkdir()
    for stage, items in enumerate(layouts):
        document = {
            "current_stage": 1,
            "parallel_strategy_item": {"operator": {"stage": stage, "parallel_strategy": [[ranks]]}},
            "parallel_layout_item": items,
        }
        (path / f"stage_{stage}.json" if stages > 1 else path).write_text(json.dumps(document))


def write_adapter(path: Path, size: str, rank: int, targets: tuple[str, ...]) -> None:
    """A LoRA adapter for such a base, in MindPet's names and Hugging Face's layers."""
    save_checkpoint(path, _factors(size, rank, targets, "", "mindpet_delta_lora_a", "mindpet_delta_lora_b"))


def write_combined(path: Path, size: str, dtype: str, rank: int, targets: tuple[str, ...]) -> None:
    """Base and adapter in one file, as MindFormers' training saves them."""
    save_checkpoint(path, combined_tensors(size, dtype, rank, targets))


def combined_tensors(size: str, dtype: str, rank: int, targets: tuple[str, ...]) -> dict[str, LazyTensor]:
    """Base and adapter together."""
    factors = _factors(size, rank, targets, "", "mindpet_delta_lora_a", "mindpet_delta_lora_b")
    return {**_weights(size, dtype), **factors}


def write_peft_adapter(folder: Path, size: str, rank: int, targets: tuple[str, ...], seed: int = 0) -> None:
    """The same adapter as a PEFT folder; another one for each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _factors(size, rank, targets, "base_model.model.", "lora_A.weight", "lora_B.weight", 100_000 * seed)
    save_checkpoint(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _weights(size: str, dtype: str) -> dict[str, LazyTensor]:
    names = SIZES[size].weights()
    return {name: Noise(shape, BY_NAME[dtype], seed) for seed, (name, shape) in enumerate(names)}


def _factors(
    size: str, rank: int, targets: tuple[str, ...], prefix: str, a: str, b: str, first_seed: int = 0
) -> dict[str, LazyTensor]:
    factors: dict[str, LazyTensor] = {}
    for seed, (name, (rows, columns)) in enumerate(_targeted(size, targets), first_seed):
        layer = prefix + name.removesuffix(".weight")
        factors[f"{layer}.{a}"] = Noise((rank, columns), BY_NAME["fp32"], 10_000 + seed)
        factors[f"{layer}.{b}"] = Noise((rows, rank), BY_NAME["fp32"], 20_000 + seed)
    return factors


def _targeted(size: str, targets: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, shape in SIZES[size].weights():
        if name.split(".")[-2] in targets and len(shape) == 2:
            yield name, (shape[0], shape[1])
