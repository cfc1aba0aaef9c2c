"""LLaMA's forward pass in numpy, enough to hear a small model speak on a machine with no deep-learning framework.

Touvron et al., arXiv:2302.13971; grouped-query attention after Ainslie et al., arXiv:2305.13245. The weights carry
MindFormers' names; the output layer is tied to the embedding. Everything is float32 and nothing is cached between
tokens: right for a sentence, wrong for a book.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["continue_greedily", "forward"]


def continue_greedily(
    weights: Mapping[str, np.ndarray], config: Mapping[str, Any], token_ids: Sequence[int], count: int
) -> list[int]:
    """Append `count` tokens, each the likeliest one, and return the appended ones."""
    ids = list(token_ids)
    for _ in range(count):
        ids.append(int(np.argmax(forward(weights, config, ids))))
    return ids[len(token_ids) :]


def forward(weights: Mapping[str, np.ndarray], config: Mapping[str, Any], token_ids: Sequence[int]) -> np.ndarray:
    """The scores of the token that follows.

    Args:
        weights: MindFormers name to float32 array, `(out, in)` for linear layers.
        config: The keys of a Hugging Face `config.json` of a LLaMA.
        token_ids: The text so far.

    Returns:
        One score a token of the vocabulary, `(vocab_size,)`.
    """
    eps = config["rms_norm_eps"]
    embedding = weights["model.tok_embeddings.embedding_weight"]
    hidden = embedding[np.asarray(token_ids)]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        normed = _rms_norm(hidden, weights[layer + "attention_norm.weight"], eps)
        hidden = hidden + _attention(weights, layer + "attention.", config, normed)
        normed = _rms_norm(hidden, weights[layer + "ffn_norm.weight"], eps)
        hidden = hidden + _feed_forward(weights, layer + "feed_forward.", normed)
    return embedding @ _rms_norm(hidden[-1], weights["model.norm_out.weight"], eps)


def _attention(
    weights: Mapping[str, np.ndarray], cell: str, config: Mapping[str, Any], hidden: np.ndarray
) -> np.ndarray:
    length, size = len(hidden), config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def project(name: str, count: int) -> np.ndarray:
        """`(heads, length, head_size)`."""
        return (hidden @ weights[f"{cell}{name}.weight"].T).reshape(length, count, size).swapaxes(0, 1)

    query = _rotate(project("wq", heads), config["rope_theta"])
    key = np.repeat(_rotate(project("wk", kv_heads), config["rope_theta"]), heads // kv_heads, axis=0)
    value = np.repeat(project("wv", kv_heads), heads // kv_heads, axis=0)
    scores = query @ key.swapaxes(1, 2) / np.sqrt(np.float32(size))
    scores += np.triu(np.full((length, length), -np.inf, np.float32), 1)
    mixed = _softmax(scores) @ value
    return mixed.swapaxes(0, 1).reshape(length, heads * size) @ weights[f"{cell}wo.weight"].T


def _feed_forward(weights: Mapping[str, np.ndarray], cell: str, hidden: np.ndarray) -> np.ndarray:
    gate = hidden @ weights[f"{cell}w1.weight"].T
    up = hidden @ weights[f"{cell}w3.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ weights[f"{cell}w2.weight"].T


def _rotate(heads: np.ndarray, theta: float) -> np.ndarray:
    """Rotary position embedding (Su et al., arXiv:2104.09864) of `(heads, length, head_size)`, halves as pairs."""
    length, half = heads.shape[1], heads.shape[2] // 2
    angles = np.outer(np.arange(length), theta ** (-np.arange(half) / half)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = heads[..., :half], heads[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _rms_norm(hidden: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return hidden / np.sqrt(np.mean(hidden * hidden, axis=-1, keepdims=True) + np.float32(eps)) * weight


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
