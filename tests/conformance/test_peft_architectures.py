"""Tied weights of many architectures, each with its own names: the merged network speaks as base and adapter do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_models import VOCABULARY, Network, load_adapted, logits, lora, write_adapter, write_base
from peft_reference import assert_speaks_alike
from transformers import (
    AlbertConfig,
    BartConfig,
    BloomConfig,
    DistilBertConfig,
    ElectraConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    MT5Config,
    OPTConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from ckpt_tools import merge

_BERT: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_T5: Mapping[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART: Mapping[str, Any] = {
    **{f"{part}_{size}": 2 for part in ("encoder", "decoder") for size in ("layers", "attention_heads")},
    **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
    "d_model": 32,
    "max_position_embeddings": 64,
    "forced_eos_token_id": 2,
}


def _network(kind: type[PreTrainedConfig], auto: str, target: str, embedding: str, head: str, **sizes: Any) -> Network:
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = kind(vocab_size=VOCABULARY, **{**tokens, **sizes})
    return Network(config, f"AutoModelFor{auto}", (target,), embedding, head)


NETWORKS = {
    "t5": _network(T5Config, "Seq2SeqLM", "q", "shared", "lm_head", **_T5),
    "mt5": _network(MT5Config, "Seq2SeqLM", "q", "shared", "lm_head", **_T5),
    "bart": _network(BartConfig, "Seq2SeqLM", "q_proj", "shared", "lm_head", **_BART),
    "gpt-neox": _network(
        GPTNeoXConfig, "CausalLM", "query_key_value", "embed_in", "lm_head", tie_word_embeddings=True, **_BERT
    ),
    "opt": _network(
        OPTConfig,
        "CausalLM",
        "q_proj",
        "embed_tokens",
        "lm_head",
        ffn_dim=48,
        word_embed_proj_dim=32,
        **{name: size for name, size in _BERT.items() if name != "intermediate_size"},
    ),
    "bloom": _network(
        BloomConfig, "CausalLM", "query_key_value", "word_embeddings", "lm_head", hidden_size=32, n_layer=2, n_head=4
    ),
    "falcon": _network(FalconConfig, "CausalLM", "query_key_value", "word_embeddings", "lm_head", **_BERT),
    "gemma2": _network(
        Gemma2Config, "CausalLM", "q_proj", "embed_tokens", "lm_head", head_dim=8, num_key_value_heads=2, **_BERT
    ),
    "roberta": _network(RobertaConfig, "MaskedLM", "query", "word_embeddings", "decoder", **_BERT),
    "albert": _network(AlbertConfig, "MaskedLM", "query", "word_embeddings", "decoder", embedding_size=24, **_BERT),
    "electra": _network(
        ElectraConfig, "MaskedLM", "query", "word_embeddings", "generator_lm_head", embedding_size=24, **_BERT
    ),
    "distilbert": _network(
        DistilBertConfig,
        "MaskedLM",
        "q_lin",
        "word_embeddings",
        "vocab_projector",
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=64,
    ),
}

Option = Callable[[Network], dict[str, Any]]


def _head(network: Network) -> dict[str, Any]:
    return {"target_modules": [network.head]}


def _embedding(network: Network) -> dict[str, Any]:
    # PEFT wraps the embedding that T5 and BART call `shared`, through which no token goes.
    return {"target_modules": [*network.targets, network.embedding]}


def _head_saved(network: Network) -> dict[str, Any]:
    return {"target_modules": list(network.targets), "modules_to_save": [network.head]}


def _embedding_saved(network: Network) -> dict[str, Any]:
    return {"target_modules": list(network.targets), "modules_to_save": [network.embedding]}


def _biases(network: Network) -> dict[str, Any]:
    return {"target_modules": list(network.targets), "bias": "all"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each base once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = write_base(NETWORKS[name], tmp_path_factory.mktemp(name), torch.float32)
        return made[name]

    return make


@pytest.mark.parametrize(
    "option", [_head, _embedding, _head_saved, _embedding_saved, _biases], ids=lambda o: o.__name__
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_merged_network_speaks_as_base_and_adapter_do(
    name: str, option: Option, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    network, base = NETWORKS[name], bases(name)
    adapter = write_adapter(network, base, tmp_path / "adapter", lora(**option(network)))
    merge(base, adapter, output=tmp_path / "merged")
    assert_speaks_alike(network, tmp_path / "merged", logits(load_adapted(network, base, adapter)), base)
