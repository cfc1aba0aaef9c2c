"""The small files that the documentation's examples run on: a two-layer LLaMA and a LoRA adapter in every form."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from ckpt_tools import save_checkpoint

_HIDDEN, _INNER, _VOCABULARY, _RANK, _ALPHA = 32, 64, 128, 4, 16
_CELLS = {"attention.wq": "self_attn.q_proj", "attention.wv": "self_attn.v_proj"}
_LAYERS = range(2)


def write_docs_samples(folder: Path) -> None:
    """Write every file that a page may name.

    base.ckpt          a base under MindFormers' names, bfloat16
    lora.ckpt          a LoRA adapter of it in MindPet's spelling, rank 4; alpha is 16 and in no file beside it
    combined.ckpt      both in one file, with the optimizer's states, as training saves them
    run.yaml           the run's configuration, which holds alpha
    llama-hf/          the base as a Hugging Face folder of two shards
    llama-lora-peft/   the adapter as a PEFT folder
    """
    generator = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return generator.normal(0, 0.1, (rows, columns)).astype(ml_dtypes.bfloat16)

    ones = np.ones(_HIDDEN, ml_dtypes.bfloat16)
    hugging_face = {"model.embed_tokens.weight": matrix(_VOCABULARY, _HIDDEN)}
    mindformers = {"model.tok_embeddings.embedding_weight": hugging_face["model.embed_tokens.weight"]}
    lora, peft = {}, {}
    for layer in _LAYERS:
        for cell, module in (
            *_CELLS.items(),
            ("attention.wk", "self_attn.k_proj"),
            ("attention.wo", "self_attn.o_proj"),
        ):
            weight = matrix(_HIDDEN, _HIDDEN)
            mindformers[f"model.layers.{layer}.{cell}.weight"] = weight
            hugging_face[f"model.layers.{layer}.{module}.weight"] = weight
        for cell, module, shape in (
            ("feed_forward.w1", "mlp.gate_proj", (_INNER, _HIDDEN)),
            ("feed_forward.w2", "mlp.down_proj", (_HIDDEN, _INNER)),
            ("feed_forward.w3", "mlp.up_proj", (_INNER, _HIDDEN)),
        ):
            weight = matrix(*shape)
            mindformers[f"model.layers.{layer}.{cell}.weight"] = weight
            hugging_face[f"model.layers.{layer}.{module}.weight"] = weight
        for cell, module in (("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            mindformers[f"model.layers.{layer}.{cell}.weight"] = ones
            hugging_face[f"model.layers.{layer}.{module}.weight"] = ones
        for cell, module in _CELLS.items():
            a = generator.normal(0, 0.1, (_RANK, _HIDDEN)).astype(np.float32)
            b = generator.normal(0, 0.003, (_HIDDEN, _RANK)).astype(np.float32)
            lora[f"model.layers.{layer}.{cell}.mindpet_delta_lora_a"] = a
            lora[f"model.layers.{layer}.{cell}.mindpet_delta_lora_b"] = b
            peft[f"base_model.model.model.layers.{layer}.{module}.lora_A.weight"] = a
            peft[f"base_model.model.model.layers.{layer}.{module}.lora_B.weight"] = b
    mindformers["model.norm_out.weight"] = hugging_face["model.norm.weight"] = ones
    mindformers["lm_head.weight"] = hugging_face["lm_head.weight"] = matrix(_VOCABULARY, _HIDDEN)

    save_checkpoint(folder / "base.ckpt", mindformers)
    save_checkpoint(folder / "lora.ckpt", lora)
    states = {f"adam_m.{name}": np.zeros_like(values) for name, values in lora.items()}
    save_checkpoint(
        folder / "combined.ckpt", {**mindformers, **lora, **states, "global_step": np.array([100], np.int32)}
    )
    (folder / "run.yaml").write_text(_RUN_YAML, encoding="utf-8")
    _write_hf_folder(folder / "llama-hf", hugging_face)
    _write_peft_folder(folder / "llama-lora-peft", peft)


_RUN_YAML = f"""\
model:
  model_config:
    type: LlamaConfig
    hidden_size: {_HIDDEN}
    pet_config:
      pet_type: lora
      lora_rank: {_RANK}
      lora_alpha: {_ALPHA}
      lora_dropout: 0.1
      target_modules: '.*wq|.*wv'
"""


def _write_hf_folder(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    names = list(tensors)
    shards = {
        f"model-{number:05}-of-00002.safetensors": {name: tensors[name] for name in part}
        for number, part in enumerate((names[:10], names[10:]), start=1)
    }
    for file, part in shards.items():
        save_checkpoint(folder / file, part, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(values.nbytes for values in tensors.values())},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_attention_heads": 4,
        "num_hidden_layers": len(_LAYERS),
        "vocab_size": _VOCABULARY,
        "torch_dtype": "bfloat16",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write_peft_folder(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    save_checkpoint(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.1,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
