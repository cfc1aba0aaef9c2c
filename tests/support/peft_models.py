"""Small random networks of transformers, and PEFT adapters with no value left as it was initialised."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

VOCABULARY = 96
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Network:
    """A kind of network.

    Attributes:
        config: Its configuration.
        auto_class: The transformers class that loads it.
        targets: Names of its linear layers, among them one whose weight is square.
        embedding: Name of its embedding.
        head: Name of its output head.
    """

    config: PreTrainedConfig
    auto_class: str
    targets: tuple[str, ...]
    embedding: str
    head: str

    def load(self, folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        """The network of a folder, in evaluation mode; nothing may be missing and nothing left over."""
        factory = getattr(transformers, self.auto_class)
        model, info = factory.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(info.values()), info
        return model.eval()

    def build(self) -> PreTrainedModel:
        """A network with random values in every parameter, biases and norms included."""
        model = getattr(transformers, self.auto_class).from_config(self.config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model.eval()


_LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LLAMA_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_BERT_LAYERS = ("query", "key", "value", "attention.output.dense", "intermediate.dense")
_LLAMA = LlamaConfig(**_LLAMA_SIZES, hidden_size=48, intermediate_size=80, tie_word_embeddings=False)

NETWORKS: Mapping[str, Network] = {
    "llama": Network(_LLAMA, "AutoModelForCausalLM", _LLAMA_LAYERS, "embed_tokens", "lm_head"),
    "llama-classifier": Network(
        LlamaConfig(**_LLAMA_SIZES, hidden_size=48, intermediate_size=80, num_labels=3, pad_token_id=0),
        "AutoModelForSequenceClassification",
        _LLAMA_LAYERS,
        "embed_tokens",
        "score",
    ),
    "qwen2": Network(
        Qwen2Config(**_LLAMA_SIZES, hidden_size=32, intermediate_size=56, tie_word_embeddings=True),
        "AutoModelForCausalLM",
        _LLAMA_LAYERS,
        "embed_tokens",
        "lm_head",
    ),
    "gpt2": Network(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=40, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
        ),
        "AutoModelForCausalLM",
        ("c_attn", "c_proj", "c_fc"),
        "wte",
        "lm_head",
    ),
    "bert": Network(
        BertConfig(**_BERT_SIZES), "AutoModelForMaskedLM", _BERT_LAYERS, "word_embeddings", "predictions.decoder"
    ),
    "bert-classifier": Network(
        BertConfig(**_BERT_SIZES, num_labels=3),
        "AutoModelForSequenceClassification",
        _BERT_LAYERS,
        "word_embeddings",
        "classifier",
    ),
}


def write_base(network: Network, folder: Path, dtype: torch.dtype, *, max_shard_size: str = "5GB") -> Path:
    """Save a random network, as transformers saves it."""
    torch.manual_seed(1)
    network.build().to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def write_adapter(
    network: Network,
    base: Path,
    folder: Path,
    config: PeftConfig,
    *,
    dtype: torch.dtype | None = None,
    adapter_name: str = "default",
    seed: int = 2,
) -> Path:
    """Save an adapter whose every parameter was moved, as PEFT saves it.

    Args:
        network: What it adapts.
        base: The base's folder.
        folder: Where it goes; PEFT puts an adapter of another name than `default` into a folder of that name in it.
        config: What it is; PEFT changes some configurations, so each call wants one of its own.
        dtype: The type of what is saved; None for what PEFT chooses.
        adapter_name: What PEFT calls it.
        seed: Of the values.

    Returns:
        The folder that holds the adapter.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(network.load(base, torch.float32), config, adapter_name=adapter_name)
        shake(model, seed)
        if dtype is not None:
            model.to(dtype)
        model.save_pretrained(folder)
    return folder if adapter_name == "default" else folder / adapter_name


def shake(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter that an adapter trains."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def load_adapted(network: Network, base: Path, *adapters: Path) -> PeftModel:
    """Base and adapters as PEFT loads them, in float64; the first adapter is the active one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(network.load(base), adapters[0])
        for number, adapter in enumerate(adapters[1:]):
            model.load_adapter(adapter, f"adapter{number}")
    return model.double().eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """What a network says to a few fixed tokens, float64."""
    tokens = torch.tensor([[5, 17, 3, 60, 88, 42, 7, 95], [11, 90, 33, 21, 54, 8, 71, 64]])
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens.flip(1)
    with torch.inference_mode():
        return model(**inputs).logits.double()


def lora(**options: Any) -> LoraConfig:
    """A LoRA configuration with a scale other than 1."""
    return LoraConfig(**{"r": 4, "lora_alpha": 6, **options})
