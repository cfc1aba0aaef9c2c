"""Names of LLaMA-like networks, between Hugging Face and MindFormers.

The first table is MindFormers' `LlamaForCausalLM.convert_name` (1.9.0, `models/llama/llama.py`), which all networks
share that it builds from its LLaMA classes: LLaMA 1 to 3, and the older generation's Qwen2 and 2.5, Yi, Mistral and
others. The second is the `weight_mapping` of its parallel core (`models/{qwen2,qwen3,qwen3_moe,glm4}/utils.py`, alike
in all that is listed here), of which only the way to Hugging Face is unambiguous.

Fused weights have no counterpart of one name: `w_qkv` and `linear_qkv` hold the rows of q, k and v, interleaved by
groups of key-value heads; `w_gate_hidden` and `linear_fc1` hold the rows of gate and up in turns (in the parallel core
both depend on the run's configuration). They keep their names, and `fused_parts` says what they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from surgery.documents import read_json
from surgery.errors import CorruptInputError, Problem

__all__ = ["fused_parts", "load_name_map", "naming_of", "to_huggingface", "to_mindformers"]

# Within `layers.N.`; MindFormers' LLaMA, then Hugging Face.
_LAYER_PARTS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# Within `decoder.layers.N.`; MindFormers' parallel core, then Hugging Face.
_CORE_LAYER_PARTS = {
    "self_attention.linear_q": "self_attn.q_proj",
    "self_attention.linear_k": "self_attn.k_proj",
    "self_attention.linear_v": "self_attn.v_proj",
    "self_attention.linear_proj": "self_attn.o_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "mlp.gating": "mlp.gate_proj",
    "mlp.hidden": "mlp.up_proj",
    "mlp.linear_fc2": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "pre_mlp_layernorm": "post_attention_layernorm",
}
_CORE_PARTS = {
    "embedding.word_embeddings": "model.embed_tokens",
    "decoder.final_layernorm": "model.norm",
    "output_layer": "lm_head",
}
_FUSED_PARTS = {
    "attention.w_qkv": ("q_proj", "k_proj", "v_proj"),
    "feed_forward.w_gate_hidden": ("gate_proj", "up_proj"),
    "self_attention.linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "mlp.linear_fc1": ("gate_proj", "up_proj"),
}

_HUGGINGFACE_PARTS = {theirs: ours for ours, theirs in _LAYER_PARTS.items()}


def _within_layer(parts: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(part) for part in parts)
    return re.compile(rf"(?P<head>(?:.*\.)?layers\.\d+)\.(?P<part>{alternatives})(?P<tail>\..*)?")


_MINDFORMERS = _within_layer(_LAYER_PARTS)
_HUGGINGFACE = _within_layer(_HUGGINGFACE_PARTS)
_FUSED = _within_layer(_FUSED_PARTS)
_CORE = re.compile(
    r"(?:model\.)?decoder\.(?P<head>layers\.\d+)\.(?P<part>"
    + "|".join(map(re.escape, _CORE_LAYER_PARTS))
    + r")(?P<tail>\..*)?"
)
_CORE_TOP = re.compile(r"(?:model\.)?(?P<part>" + "|".join(map(re.escape, _CORE_PARTS)) + r")(?P<tail>\..*)?")

# The parts outside of the layers. Only the embedding's parameter is called otherwise too.
_TO_MINDFORMERS_TOP = (
    (re.compile(r"(.*\.)?embed_tokens\.weight"), r"\1tok_embeddings.embedding_weight"),
    (re.compile(r"(.*\.)?embed_tokens((?:\..*)?)"), r"\1tok_embeddings\2"),
    (re.compile(r"((?:.*\.)?model\.|)norm((?:\..*)?)"), r"\1norm_out\2"),
)
_TO_HUGGINGFACE_TOP = (
    (re.compile(r"(.*\.)?tok_embeddings\.embedding_weight"), r"\1embed_tokens.weight"),
    (re.compile(r"(.*\.)?tok_embeddings((?:\..*)?)"), r"\1embed_tokens\2"),
    (re.compile(r"((?:.*\.)?model\.|)norm_out((?:\..*)?)"), r"\1norm\2"),
)


def to_huggingface(name: str) -> str:
    """A weight's or a module's name as Hugging Face has it; the same name where the tables say nothing on it."""
    inner = _MINDFORMERS.fullmatch(name)
    if inner:
        return f"{inner['head']}.{_LAYER_PARTS[inner['part']]}{inner['tail'] or ''}"
    core = _CORE.fullmatch(name)
    if core:
        return f"model.{core['head']}.{_CORE_LAYER_PARTS[core['part']]}{core['tail'] or ''}"
    top = _CORE_TOP.fullmatch(name)
    if top:
        return f"{_CORE_PARTS[top['part']]}{top['tail'] or ''}"
    return _replaced(name, _TO_HUGGINGFACE_TOP)


def to_mindformers(name: str) -> str:
    """A weight's or a module's name as MindFormers' LLaMA has it; the same name where the table says nothing on it."""
    inner = _HUGGINGFACE.fullmatch(name)
    if inner:
        return f"{inner['head']}.{_HUGGINGFACE_PARTS[inner['part']]}{inner['tail'] or ''}"
    return _replaced(name, _TO_MINDFORMERS_TOP)


def _replaced(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(replacement)
    return name


_NORMS = frozenset({"attention_norm", "ffn_norm", "input_layernorm", "pre_mlp_layernorm", "post_attention_layernorm"})


def naming_of(names: Iterable[str]) -> str | None:
    """Whose names these are: `huggingface`, `mindformers`, or None where none or both show.

    Projections and embeddings decide; norms are called alike in too many networks.
    """
    seen = set()
    for name in names:
        inner = _MINDFORMERS.fullmatch(name) or _CORE.fullmatch(name) or _FUSED.fullmatch(name)
        if inner and inner["part"] not in _NORMS:
            seen.add("mindformers")
            continue
        inner = _HUGGINGFACE.fullmatch(name)
        if inner and inner["part"] not in _NORMS:
            seen.add("huggingface")
        elif ".tok_embeddings." in f".{name}." or _CORE_TOP.fullmatch(name):
            seen.add("mindformers")
        elif ".embed_tokens." in f".{name}.":
            seen.add("huggingface")
    return seen.pop() if len(seen) == 1 else None


def fused_parts(name: str) -> tuple[str, ...]:
    """What a fused weight of MindFormers holds, in Hugging Face's words; empty for any other name."""
    fused = _FUSED.fullmatch(name)
    return _FUSED_PARTS[fused["part"]] if fused else ()


def load_name_map(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Read a JSON object of a weight's name to the name that it is to have.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no JSON object of strings, a name is empty, or two names become one.
    """
    values = read_json(path)
    problems = []
    sources: dict[str, str] = {}
    for name, target in values.items():
        if not isinstance(target, str) or not target or not name:
            problems.append(Problem(f"{path}: {name!r}", f"{target!r:.80}", "a name of at least one character"))
        elif target in sources:
            problems.append(
                Problem(f"{path}: {sources[target]!r} and {name!r}", f"both become {target!r}", "a name for each")
            )
        else:
            sources[target] = name
    if problems:
        raise CorruptInputError(problems)
    return values
