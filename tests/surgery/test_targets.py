"""Which layers a configuration selects. The expectations on PEFT are what its 0.21.2 answers."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.cell_rules import CellFacts, CellRule, select_cells
from surgery.config import LoraConfig, Selection
from surgery.errors import MismatchError
from surgery.targets import selects

Q = "model.layers.3.self_attn.q_proj"
EXPERT = "model.layers.1.mlp.experts.0.w1"


@pytest.mark.parametrize(
    ("options", "layer", "selected"),
    [
        ({"target_modules": ("q_proj",)}, Q, True),
        ({"target_modules": ("self_attn.q_proj",)}, Q, True),
        ({"target_modules": (Q,)}, Q, True),
        ({"target_modules": ("proj",)}, Q, False),
        ({"target_modules": ("q_proj",)}, "model.layers.3.self_attn.xq_proj", False),
        ({"target_modules": ()}, Q, False),
        ({"target_modules": None}, Q, False),
        ({"target_modules": r".*\.q_proj"}, Q, True),
        ({"target_modules": r"q_proj"}, Q, False),
        ({"target_modules": ("q_proj",), "exclude_modules": ("layers.3.self_attn.q_proj",)}, Q, False),
        ({"target_modules": ("q_proj",), "exclude_modules": r".*\.3\..*"}, Q, False),
        ({"target_modules": ("q_proj",), "exclude_modules": ("3",)}, Q, True),
        ({"target_modules": ("q_proj",), "modules_to_save": ("self_attn",)}, Q, False),
        ({"target_modules": ("q_proj",), "modules_to_save": ("attn",)}, Q, True),
        ({"target_modules": ("q_proj",), "layers_to_transform": (1, 3)}, Q, True),
        ({"target_modules": ("q_proj",), "layers_to_transform": (1, 2)}, Q, False),
        ({"target_modules": ("q_proj",), "layers_to_transform": 3}, Q, True),
        ({"target_modules": ("q_proj",), "layers_to_transform": 2}, Q, False),
        ({"target_modules": ("q_proj",), "layers_to_transform": ()}, Q, True),
        ({"target_modules": (Q,), "layers_to_transform": (1,)}, Q, True),
        ({"target_modules": ("q_proj",), "layers_to_transform": (3,), "layers_pattern": "layers"}, Q, True),
        ({"target_modules": ("q_proj",), "layers_to_transform": (3,), "layers_pattern": ("h", "layers")}, Q, True),
        ({"target_modules": ("q_proj",), "layers_to_transform": (3,), "layers_pattern": ("h",)}, Q, False),
        ({"target_modules": ("q_proj",), "layers_to_transform": (3,), "layers_pattern": ()}, Q, True),
        ({"target_modules": ("w1",), "layers_to_transform": (1,)}, EXPERT, True),
        ({"target_modules": ("w1",), "layers_to_transform": (0,)}, EXPERT, False),
        ({"target_modules": ("q_proj",), "layers_to_transform": (0,)}, "q_proj.q_proj", False),
        ({"target_modules": "all-linear"}, Q, True),
        ({"target_modules": "ALL-LINEAR", "exclude_modules": ("q_proj",)}, Q, False),
    ],
)
def test_pefts_rules(options: dict[str, Any], layer: str, selected: bool) -> None:
    verdict = selects(LoraConfig("c", **options), layer)
    assert bool(verdict) is selected
    assert verdict.reason


def test_all_linear_leaves_out_other_layers_and_the_output_head() -> None:
    config = LoraConfig("c", target_modules="all-linear")
    assert not selects(config, "model.embed_tokens", is_linear=False)
    assert not selects(config, "lm_head", is_output_head=True)


def mindformers(target_modules: str | None, *exclude: str, path: bool = False) -> LoraConfig:
    selection = Selection.MINDFORMERS_PYNATIVE if path else Selection.MINDFORMERS
    return LoraConfig("c", target_modules=target_modules, exclude_modules=exclude or None, selection=selection)


@pytest.mark.parametrize(
    ("config", "layer", "selected"),
    [
        (mindformers(".*wq|.*wv"), "model.layers.0.attention.wq", True),
        (mindformers(".*wq|.*wv"), "model.layers.0.attention.wk", False),
        (mindformers("w"), "model.layers.0.attention.wk", True),  # re.match needs no end
        (mindformers("attention.wq"), "model.layers.0.attention.wq", False),  # the name, not the path
        (mindformers("q"), "model.layers.0.attention.wq", False),
        (mindformers(".*"), "model.layers.0.attention.wq", False),  # stops at `layers`, which is no linear layer
        (mindformers("mo|wq"), "model.layers.0.attention.wq", True),  # the body's own name is not tried
        (mindformers("w.", "wq"), "model.layers.0.attention.wq", False),
        (mindformers("w.", "attention"), "model.layers.0.attention.wq", False),
        (mindformers("w.", "0"), "model.layers.0.attention.wq", False),
        (mindformers(None), "model.layers.0.attention.wq", False),
        (mindformers(r".*\.0\..*\.wq|lm_head"), "model.layers.0.attention.wq", True),  # asks for a dot: a path
        (mindformers(r".*\.0\..*\.wq|lm_head"), "model.layers.1.attention.wq", False),
        (mindformers(r"wq\.?"), "model.layers.1.attention.wq", False),
        (mindformers(r".*\.wq", "attention"), "model.layers.1.attention.wq", False),  # excluded with all that is in it
        (mindformers(r".*\.wq", r"model\.layers\.1"), "model.layers.1.attention.wq", False),
        (mindformers(r".*\.wq", r"model\.layers\.2"), "model.layers.1.attention.wq", True),
        (mindformers("wq", r"model\.layers\.1"), "model.layers.1.attention.wq", False),
        (mindformers("linear_(qkv|proj)$", path=True), "model.decoder.layers.0.self_attention.linear_qkv", True),
        (mindformers("attention.linear_qkv", path=True), "model.decoder.layers.0.self_attention.linear_qkv", True),
        (mindformers("linear_qk$", path=True), "model.decoder.layers.0.self_attention.linear_qkv", False),
        (mindformers("linear_qkv", r"layers\.0", path=True), "decoder.layers.0.self_attention.linear_qkv", False),
        (mindformers("decoder", path=True), "decoder.layers.0.self_attention.linear_qkv", True),
    ],
)
def test_mindformers_rules(config: LoraConfig, layer: str, selected: bool) -> None:
    verdict = selects(config, layer)
    assert bool(verdict) is selected
    assert verdict.reason


def test_mindformers_selects_linear_layers_only() -> None:
    assert not selects(mindformers("tok_embeddings"), "model.tok_embeddings", is_linear=False)
    assert not selects(mindformers(r"model\.tok_embeddings"), "model.tok_embeddings", is_linear=False)


@pytest.mark.parametrize("rule", ["wq|wv", r".*\.wq", ".*w", "layers", r"model\..*\.1\..*"])
@pytest.mark.parametrize("exclude", ["", "attention", "wv", "1", r"model\.layers\.1", r".*\.wq"])
def test_a_configuration_selects_what_the_same_rule_selects_in_a_network(rule: str, exclude: str) -> None:
    layers = [f"model.layers.{block}.attention.{leaf}" for block in range(2) for leaf in ("wq", "wv")]
    paths = dict.fromkeys(".".join(layer.split(".")[:depth]) for layer in layers for depth in range(1, 6))
    cells = [CellFacts(path, "" if path in layers else "no linear layer") for path in paths]
    by_file = [layer for layer in layers if selects(mindformers(rule, *[exclude] if exclude else []), layer)]
    try:
        by_network = select_cells(CellRule(rule, (exclude,) if exclude else ()), cells, body="model").paths
    except MismatchError:
        by_network = ()
    assert tuple(by_file) == by_network
