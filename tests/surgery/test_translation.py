"""Names of LLaMA-like networks, between Hugging Face and MindFormers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import CorruptInputError
from surgery.translation import fused_parts, load_name_map, naming_of, to_huggingface, to_mindformers

LLAMA = [
    ("model.tok_embeddings.embedding_weight", "model.embed_tokens.weight"),
    ("model.layers.3.attention.wq.weight", "model.layers.3.self_attn.q_proj.weight"),
    ("model.layers.3.attention.wk.bias", "model.layers.3.self_attn.k_proj.bias"),
    ("model.layers.3.attention.wv", "model.layers.3.self_attn.v_proj"),
    ("model.layers.3.attention.wo.lora_a", "model.layers.3.self_attn.o_proj.lora_a"),
    ("model.layers.3.feed_forward.w1.weight", "model.layers.3.mlp.gate_proj.weight"),
    ("model.layers.3.feed_forward.w2.weight", "model.layers.3.mlp.down_proj.weight"),
    ("model.layers.3.feed_forward.w3.weight", "model.layers.3.mlp.up_proj.weight"),
    ("model.layers.3.attention_norm.weight", "model.layers.3.input_layernorm.weight"),
    ("model.layers.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
    ("model.norm_out.weight", "model.norm.weight"),
    ("lm_head.weight", "lm_head.weight"),
    ("model.tok_embeddings", "model.embed_tokens"),
    ("layers.3.attention.wq.weight", "layers.3.self_attn.q_proj.weight"),
    ("norm_out.weight", "norm.weight"),
]
CORE = [
    ("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
    ("model.decoder.layers.3.self_attention.linear_q.weight", "model.layers.3.self_attn.q_proj.weight"),
    ("decoder.layers.3.self_attention.linear_proj.lora_A.weight", "model.layers.3.self_attn.o_proj.lora_A.weight"),
    ("decoder.layers.3.self_attention.q_layernorm.weight", "model.layers.3.self_attn.q_norm.weight"),
    ("decoder.layers.3.mlp.linear_fc2", "model.layers.3.mlp.down_proj"),
    ("decoder.layers.3.mlp.gating.weight", "model.layers.3.mlp.gate_proj.weight"),
    ("decoder.layers.3.input_layernorm.weight", "model.layers.3.input_layernorm.weight"),
    ("decoder.layers.3.pre_mlp_layernorm.weight", "model.layers.3.post_attention_layernorm.weight"),
    ("decoder.final_layernorm.weight", "model.norm.weight"),
    ("output_layer.weight", "lm_head.weight"),
]


@pytest.mark.parametrize(("ours", "theirs"), LLAMA)
def test_llama_names_go_both_ways(ours: str, theirs: str) -> None:
    assert to_huggingface(ours) == theirs
    assert to_mindformers(theirs) == ours


@pytest.mark.parametrize(("ours", "theirs"), CORE)
def test_names_of_the_parallel_core_go_to_hugging_face(ours: str, theirs: str) -> None:
    assert to_huggingface(ours) == theirs


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.c_attn.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.attention.w_qkv.weight",
        "decoder.layers.0.self_attention.linear_qkv.weight",
        "model.layers.0.self_attn.q_projection.weight",
        "model.layers.0.norm.weight",
        "embed_tokens_extra.weight",
    ],
)
def test_a_name_that_the_tables_do_not_have_stays(name: str) -> None:
    assert to_huggingface(name) == name
    assert to_mindformers(name) == name


@given(st.text(alphabet="model.norm_outlayers0attention.wqembed_tokens", max_size=40))
def test_translating_twice_changes_nothing_more(name: str) -> None:
    assert to_huggingface(to_huggingface(name)) == to_huggingface(name)
    assert to_mindformers(to_mindformers(name)) == to_mindformers(name)


def test_the_translation_keeps_names_apart() -> None:
    assert len({to_huggingface(ours) for ours, _ in LLAMA}) == len(LLAMA)
    assert len({to_mindformers(theirs) for _, theirs in LLAMA}) == len(LLAMA)


@pytest.mark.parametrize(
    ("names", "naming"),
    [
        ([ours for ours, _ in LLAMA], "mindformers"),
        ([theirs for _, theirs in LLAMA], "huggingface"),
        ([ours for ours, _ in CORE], "mindformers"),
        (["model.layers.0.attention.w_qkv.weight"], "mindformers"),
        (["transformer.h.0.attn.c_attn.weight", "lm_head.weight"], None),
        (["model.layers.0.input_layernorm.weight", "model.norm.weight"], None),
        (["model.layers.0.attention.wq.weight", "model.layers.0.self_attn.q_proj.weight"], None),
        ([], None),
    ],
)
def test_names_show_whose_they_are(names: list[str], naming: str | None) -> None:
    assert naming_of(names) == naming


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.layers.0.attention.w_qkv.weight", ("q_proj", "k_proj", "v_proj")),
        ("model.layers.0.feed_forward.w_gate_hidden", ("gate_proj", "up_proj")),
        ("decoder.layers.0.mlp.linear_fc1.weight", ("gate_proj", "up_proj")),
        ("model.layers.0.attention.wq.weight", ()),
    ],
)
def test_a_fused_weight_is_known_by_its_parts(name: str, parts: tuple[str, ...]) -> None:
    assert fused_parts(name) == parts


def test_a_name_map_is_read(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"a": "b", "b": "a"}))
    assert load_name_map(path) == {"a": "b", "b": "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "c", "b": "c"}', "both become 'c'"),
        ('{"a": 1}', "a name of at least one character"),
        ('{"a": ""}', "a name of at least one character"),
        ('{"": "a"}', "a name of at least one character"),
        ('{"a": "b", "a": "c"}', "'a' twice"),
        ('["a"]', "a JSON object"),
    ],
)
def test_a_name_map_that_is_ambiguous_is_corrupt(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(CorruptInputError, match=message):
        load_name_map(path)
