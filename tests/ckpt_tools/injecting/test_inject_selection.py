"""Which layers get parameters, by whose rules, and what is said of those that nearly did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inject_cases import LORA, WEIGHTS, injected, refusal
from merge_cases import hugging_face, random, read

PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def wq_wv(prefix: str = "model.layers") -> tuple[str, ...]:
    return tuple(f"{prefix}.{layer}.attention.{cell}" for layer in range(2) for cell in ("wq", "wv"))


def test_mindformers_rule_is_tried_on_the_cells_own_name_in_the_networks_order(tmp_path: Path) -> None:
    assert injected(tmp_path).layers == wq_wv()


def test_excluded_cells_are_left_with_all_that_is_in_them_and_told(tmp_path: Path) -> None:
    report = injected(tmp_path, {**LORA, "exclude_layers": ["1"]})
    assert report.layers == wq_wv()[:2]
    missed = {miss.layer: miss.reason for miss in report.near_misses}
    assert missed["model.layers.1.attention.wq"] == "excluded by exclude_layers (1, which matches 'model.layers.1')"


def test_a_rule_on_paths_reaches_what_lies_outside_of_the_body(tmp_path: Path) -> None:
    report = injected(tmp_path, {**LORA, "target_modules": r"lm_head|model\.layers\.0\.attention\.wo"})
    assert report.layers == ("model.layers.0.attention.wo", "lm_head")


def test_what_lies_outside_of_mindformers_body_is_a_near_miss(tmp_path: Path) -> None:
    report = injected(tmp_path, {**LORA, "target_modules": "wq|lm_head"})
    assert {layer.rpartition(".")[2] for layer in report.layers} == {"wq"}
    assert [miss.layer for miss in report.near_misses] == ["lm_head"]
    assert "outside of 'model'" in report.near_misses[0].reason


def test_a_name_that_holds_the_rule_but_does_not_begin_with_it_is_a_near_miss(tmp_path: Path) -> None:
    report = injected(tmp_path, {**LORA, "target_modules": "q|wk"})
    assert {layer.rpartition(".")[2] for layer in report.layers} == {"wk"}
    assert [miss.layer for miss in report.near_misses] == [f"model.layers.{n}.attention.wq" for n in range(2)]


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        (".*wqq", "Near names: wq"),
        (".*dense.*", "Linear layers: wq, wk, wv, wo"),
        ("attention", "is a cell with others in it, which is no linear layer"),
        ("norm_out", "norm_out is a layer whose weight has 1 axis, which is no linear layer"),
        (".*embeddings", "is a layer without a weight (embedding_weight)"),
    ],
)
def test_a_rule_that_selects_nothing_is_an_error_with_near_names(tmp_path: Path, rule: str, hint: str) -> None:
    assert hint in refusal(tmp_path, 5, {**LORA, "target_modules": rule})


def test_what_a_checkpoint_shows_to_be_no_linear_layer_is_left(tmp_path: Path) -> None:
    base = {
        "blocks.0.wte.weight": random(0, 8, 4),  # an embedding by its name
        "blocks.0.router.weight": random(1, 2, 4),
        "blocks.0.conv.weight": random(2, 4, 4, 3),
        "blocks.0.norm.weight": random(3, 4),
        "blocks.0.experts.weight": random(4, 2, 4, 4),
        "blocks.0.packed.weight": np.zeros((4, 4), np.int8),
        "blocks.0.proj.weight": random(5, 6, 4),
    }
    report = injected(tmp_path, {**LORA, "target_modules": "wte|router|conv|norm|experts|packed|proj"}, base)
    assert report.layers == ("blocks.0.proj",)
    reasons = {miss.layer.rpartition(".")[2]: miss.reason for miss in report.near_misses}
    assert "embedding" in reasons["wte"]
    assert "router" in reasons["router"]
    assert "3 axes" in reasons["conv"]
    assert "1 axis" in reasons["norm"]
    assert "3 axes" in reasons["experts"]
    assert "quantised" in reasons["packed"]


def test_a_bias_shows_that_a_weight_is_in_by_out(tmp_path: Path) -> None:
    base = {"h.0.c_attn.weight": random(0, 4, 12), "h.0.c_attn.bias": random(1, 12)}
    injected(tmp_path, {**LORA, "target_modules": "c_attn"}, base)
    found = read(tmp_path / "out.ckpt")
    assert list(found) == [*base, "h.0.c_attn.mindpet_delta_lora_a", "h.0.c_attn.mindpet_delta_lora_b"]
    assert found["h.0.c_attn.mindpet_delta_lora_a"].shape == (4, 4)
    assert found["h.0.c_attn.mindpet_delta_lora_b"].shape == (12, 4)


def test_pefts_rules_select_by_the_ends_of_names(tmp_path: Path) -> None:
    report = injected(tmp_path, PEFT, hugging_face(WEIGHTS))
    assert report.layers == tuple(f"model.layers.{n}.self_attn.{m}" for n in range(2) for m in ("q_proj", "v_proj"))


def test_a_peft_configuration_speaks_of_mindformers_names_by_hugging_faces(tmp_path: Path) -> None:
    assert injected(tmp_path, PEFT).layers == wq_wv()


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, 1),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, 2),
        ({"target_modules": r".*\.1\..*_proj"}, 7),
    ],
)
def test_all_of_pefts_ways_to_select_are_known(tmp_path: Path, change: dict[str, object], count: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**PEFT, **change}))
    report = injected(tmp_path, tmp_path / "adapter_config.json", hugging_face(WEIGHTS))
    assert len(report.layers) == count


def test_an_embedding_that_peft_names_is_a_near_miss(tmp_path: Path) -> None:
    config = {**PEFT, "target_modules": ["q_proj", "embed_tokens"]}
    report = injected(tmp_path, config, hugging_face(WEIGHTS))
    assert [miss.layer for miss in report.near_misses] == ["model.embed_tokens"]


def test_a_peft_configuration_that_selects_nothing_is_an_error_with_near_names(tmp_path: Path) -> None:
    message = refusal(tmp_path, 5, {**PEFT, "target_modules": ["qq_proj"]}, hugging_face(WEIGHTS))
    assert "Near names: q_proj" in message


def test_mindformers_rules_hold_on_the_names_that_a_hugging_face_base_is_given(tmp_path: Path) -> None:
    base = hugging_face(WEIGHTS)
    assert "Give --names mindformers" in refusal(tmp_path, 5, LORA, base)
    assert injected(tmp_path, LORA, base, names="mindformers").layers == wq_wv()
    assert [name for name in read(tmp_path / "out.ckpt") if "delta" not in name] == list(WEIGHTS)


def test_a_base_that_has_an_adapter_is_refused(tmp_path: Path) -> None:
    base = {**WEIGHTS, "model.layers.0.attention.wq.mindpet_delta_lora_a": random(0, 4, 16)}
    assert "Fold it in first: pet-merge BASE" in refusal(tmp_path, 5, LORA, base)


def test_rules_hold_on_the_names_that_a_map_gives(tmp_path: Path) -> None:
    old = "model.layers.1.attention.wo.weight"
    (tmp_path / "map.json").write_text(json.dumps({old: "model.layers.1.attention.projection.weight"}))
    report = injected(tmp_path, {**LORA, "target_modules": "projection"}, names=str(tmp_path / "map.json"))
    assert report.layers == ("model.layers.1.attention.projection",)
    found = list(read(tmp_path / "out.ckpt"))
    place = found.index("model.layers.1.attention.projection.weight")
    assert place == list(WEIGHTS).index(old)
    assert found[place + 1] == "model.layers.1.attention.projection.mindpet_delta_lora_a"
