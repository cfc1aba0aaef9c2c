"""Every spelling of an adapter, in every kind of file, is folded as float64 arithmetic says."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from merge_cases import (
    HIDDEN,
    INNER,
    RANK,
    TARGETS,
    VOCABULARY,
    Update,
    assert_all_merged,
    assert_merged,
    factors,
    hugging_face,
    hugging_face_name,
    llama,
    mindpet,
    peft,
    random,
    read,
    updates,
    write,
    write_peft,
)

from ckpt_tools import merge
from surgery.errors import MismatchError

BASES = ("base.ckpt", "base.safetensors", "base-ckpt", "base-safetensors")

SPELLINGS = {
    "mindpet": ("{}.mindpet_delta_lora_a", "{}.mindpet_delta_lora_b"),
    "mindpet-bare": ("{}.mindpet_delta_lora_A", "{}.mindpet_delta_lora_B"),
    "tk": ("{}.tk_delta_lora_a", "{}.tk_delta_lora_b"),
    "parallel-core": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "pynative": ("{}.lora_a", "{}.lora_b"),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
}


@pytest.mark.parametrize("file", ["lora.ckpt", "lora.safetensors"])
@pytest.mark.parametrize("family", SPELLINGS)
def test_each_spelling_is_folded_and_named_in_the_report(tmp_path: Path, family: str, file: str) -> None:
    base, pairs = llama(), factors()
    a, b = SPELLINGS[family]
    spelled = {(a if name.endswith(".A") else b).format(name[:-2]): array for name, array in pairs.items()}
    report = merge(
        write(tmp_path / "base.ckpt", base), write(tmp_path / file, spelled), output=tmp_path / "out.ckpt", alpha=8
    )
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 8 / RANK))
    assert report.adapters[0].families == (family,)
    assert {weight.name for weight in report.weights} == set(updates(pairs, 1))
    assert {use.rank for weight in report.weights for use in weight.adapters} == {RANK}


@pytest.mark.parametrize("adapter", ["lora.ckpt", "lora.safetensors", "lora-ckpt", "lora-safetensors"])
@pytest.mark.parametrize("base", BASES)
def test_each_kind_of_base_takes_each_kind_of_adapter(tmp_path: Path, base: str, adapter: str) -> None:
    weights, pairs = llama(), factors()
    suffix = Path(base).suffix
    output = tmp_path / f"out{suffix}"
    merge(write(tmp_path / base, weights), write(tmp_path / adapter, mindpet(pairs)), output=output, scaling=0.5)
    assert_all_merged(output, weights, updates(pairs, 0.5))
    assert output.is_dir() == (not suffix)


def test_a_cell_that_was_saved_alone_is_folded_under_its_bare_names(tmp_path: Path) -> None:
    base = {"weight": random(0, INNER, HIDDEN), "bias": random(1, INNER)}
    a, b = random(2, RANK, HIDDEN), random(3, INNER, RANK)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", {"mindpet_delta_lora_A": a, "mindpet_delta_lora_B": b})
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=2)
    assert_all_merged(tmp_path / "out.ckpt", base, {"weight": Update(b, a, 2 / RANK)})


def test_bare_names_in_a_combined_file_are_folded(tmp_path: Path) -> None:
    base = {"weight": random(0, INNER, HIDDEN), "bias": random(1, INNER)}
    a, b = random(2, RANK, HIDDEN), random(3, INNER, RANK)
    write(tmp_path / "both.ckpt", {**base, "mindpet_delta_lora_A": a, "mindpet_delta_lora_B": b})
    merge(tmp_path / "both.ckpt", output=tmp_path / "out.ckpt", alpha=2)
    assert_all_merged(tmp_path / "out.ckpt", base, {"weight": Update(b, a, 2 / RANK)})


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_stacks_of_expert_weights_are_folded_expert_by_expert(tmp_path: Path, dtype: str) -> None:
    experts, weight = 3, "model.layers.0.mlp.experts.weight1"
    base = {
        weight: random(0, experts, HIDDEN, INNER, dtype=dtype),
        "model.layers.0.mlp.experts.weight2": random(1, experts, INNER, HIDDEN, dtype=dtype),
    }
    a, b = random(2, experts, HIDDEN, RANK), random(3, experts, RANK, INNER)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", {f"{weight}_lora_a": a, f"{weight}_lora_b": b})
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    assert_all_merged(tmp_path / "out.ckpt", base, {weight: Update(a, b, 8 / RANK)})
    assert report.weights[0].adapters[0].kind == "expert"
    assert report.weights[0].adapters[0].rank == RANK


def test_an_embedding_of_peft_is_folded_transposed(tmp_path: Path) -> None:
    base = hugging_face(llama("fp32"))
    a, b = random(2, RANK, VOCABULARY), random(3, HIDDEN, RANK)
    prefix = "base_model.model.model.embed_tokens"
    adapter = {f"{prefix}.lora_embedding_A": a, f"{prefix}.lora_embedding_B": b}
    write(tmp_path / "base.safetensors", base)
    write_peft(tmp_path / "lora", adapter, target_modules=["embed_tokens"])
    report = merge(tmp_path / "base.safetensors", tmp_path / "lora", output=tmp_path / "out.safetensors")
    update = Update(a.T, b.T, 2.0)
    assert_all_merged(tmp_path / "out.safetensors", base, {"model.embed_tokens.weight": update})
    assert report.weights[0].adapters[0].kind == "embedding"


def test_an_embedding_of_slora_is_folded_into_its_own_name(tmp_path: Path) -> None:
    base = llama("fp32")
    a, b = random(2, RANK, VOCABULARY), random(3, HIDDEN, RANK)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", {"model.tok_embeddings.lora_a": a, "model.tok_embeddings.lora_b": b})
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", scaling=1)
    terms = {"model.tok_embeddings.embedding_weight": Update(a.T, b.T, 1)}
    assert_all_merged(tmp_path / "out.ckpt", base, terms)


def test_a_convolution_is_folded_and_measured_once(tmp_path: Path) -> None:
    # More elements than a band has at the smallest memory, so that the kernel is folded in several pieces.
    base = {"conv.weight": random(0, 96, 192, 3, 3, dtype="bf16")}
    a, b = random(1, RANK, 192, 3, 3), random(2, 96, RANK, 1, 1)
    adapter = {"base_model.model.conv.lora_A.weight": a, "base_model.model.conv.lora_B.weight": b}
    write(tmp_path / "base.safetensors", base)
    write_peft(tmp_path / "lora", adapter, target_modules=["conv"])
    report = merge(
        tmp_path / "base.safetensors", tmp_path / "lora", output=tmp_path / "out.safetensors", max_memory="98MiB"
    )
    merged = read(tmp_path / "out.safetensors")["conv.weight"]
    update = Update(b.reshape(96, RANK), a.reshape(RANK, -1), 2.0)
    assert_merged(merged.reshape(96, -1), "bf16", base["conv.weight"].reshape(96, -1), update)
    delta = 2.0 * np.linalg.norm(update.left.astype(np.float64) @ update.right)
    assert report.weights[0].delta_norm == pytest.approx(delta, rel=1e-6)
    norm = np.linalg.norm(base["conv.weight"].astype(np.float64))
    assert report.weights[0].weight_norm == pytest.approx(norm, rel=1e-6)


def test_peft_names_on_a_base_of_mindformers_are_translated(tmp_path: Path) -> None:
    base, pairs = llama(), factors()
    write(tmp_path / "base.ckpt", base)
    write_peft(tmp_path / "lora", peft(pairs))
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora", output=tmp_path / "out.ckpt")
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 2.0))
    assert "mindformers" in report.adapters[0].names


def test_mindformers_names_on_a_base_of_hugging_face_are_translated(tmp_path: Path) -> None:
    base, pairs = hugging_face(llama()), factors()
    write(tmp_path / "base-safetensors", base)
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    report = merge(tmp_path / "base-safetensors", tmp_path / "lora.ckpt", output=tmp_path / "out", alpha=8)
    terms = {hugging_face_name(name): update for name, update in updates(pairs, 2.0).items()}
    assert_all_merged(tmp_path / "out", base, terms)
    assert "huggingface" in report.adapters[0].names


@pytest.mark.parametrize(("base_prefix", "adapter_prefix"), [("", "backbone."), ("network.", "")])
def test_a_network_inside_of_another_cell_is_found(tmp_path: Path, base_prefix: str, adapter_prefix: str) -> None:
    base = {f"{base_prefix}{name}": array for name, array in llama().items()}
    pairs = factors()
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", {f"{adapter_prefix}{name}": array for name, array in mindpet(pairs).items()})
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    terms = {f"{base_prefix}{name}": update for name, update in updates(pairs, 2.0).items()}
    assert_all_merged(tmp_path / "out.ckpt", base, terms)


def test_weights_that_are_stored_transposed_are_told_by_their_shapes(tmp_path: Path) -> None:
    base = {"h.mlp.weight": random(0, HIDDEN, INNER), "h.attn.weight": random(1, HIDDEN, HIDDEN)}
    a, b = random(2, RANK, HIDDEN), random(3, INNER, RANK)
    square_a, square_b = random(4, RANK, HIDDEN), random(5, HIDDEN, RANK)
    adapter = {"h.mlp.lora_A.weight": a, "h.mlp.lora_B.weight": b}
    adapter |= {"h.attn.lora_A.weight": square_a, "h.attn.lora_B.weight": square_b}
    write(tmp_path / "base.safetensors", base)
    write(tmp_path / "lora.safetensors", adapter)
    output = tmp_path / "out.safetensors"
    merge(tmp_path / "base.safetensors", tmp_path / "lora.safetensors", output=output, alpha=4)
    terms = {"h.mlp.weight": Update(a.T, b.T, 1), "h.attn.weight": Update(square_a.T, square_b.T, 1)}
    assert_all_merged(output, base, terms)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("adapter_dtype", ["fp32", "bf16", "fp16"])
def test_each_type_of_base_takes_each_type_of_adapter(tmp_path: Path, dtype: str, adapter_dtype: str) -> None:
    base, pairs = llama(dtype), factors(dtype=adapter_dtype)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 2.0))


def test_two_adapters_on_one_weight_are_summed_each_with_its_own_alpha(tmp_path: Path) -> None:
    base, first, second = llama(), factors(), factors(TARGETS[:2], seed=2000, rank=2)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "one.ckpt", mindpet(first))
    write(tmp_path / "two.safetensors", mindpet(second))
    report = merge(
        tmp_path / "base.ckpt",
        tmp_path / "one.ckpt",
        tmp_path / "two.safetensors",
        output=tmp_path / "out.ckpt",
        alpha=[8, 3],
    )
    merged, one, two = read(tmp_path / "out.ckpt"), updates(first, 8 / RANK), updates(second, 3 / 2)
    for name, weight in base.items():
        assert_merged(merged[name], "bf16", weight, *(terms[name] for terms in (one, two) if name in terms))
    assert any("several adapters, which are summed" in warning for warning in report.warnings)
    by_name = {weight.name: weight for weight in report.weights}
    uses = by_name[f"{TARGETS[0]}.weight"].adapters
    assert [(Path(use.adapter).name, use.rank, use.alpha, use.scaling) for use in uses] == [
        ("one.ckpt", 4, 8, 2.0),
        ("two.safetensors", 2, 3, 1.5),
    ]


def test_the_same_adapter_twice_is_summed_and_said(tmp_path: Path) -> None:
    base, pairs = llama("fp32"), factors()
    write(tmp_path / "base.ckpt", base)
    lora = write(tmp_path / "lora.ckpt", mindpet(pairs))
    report = merge(tmp_path / "base.ckpt", lora, lora, output=tmp_path / "out.ckpt", alpha=4)
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 2.0))
    assert any("several adapters, which are summed" in warning for warning in report.warnings)


@pytest.mark.parametrize("replacing_first", [True, False])
def test_a_weight_that_one_adapter_replaces_and_another_changes_is_refused(
    tmp_path: Path, replacing_first: bool
) -> None:
    base = hugging_face(llama("fp32"))
    a, b = random(2, RANK, HIDDEN), random(3, VOCABULARY, RANK)
    write(tmp_path / "base.safetensors", base)
    whole = {"base_model.model.lm_head.weight": random(9, VOCABULARY, HIDDEN)}
    replacing = write_peft(tmp_path / "replacing", whole, modules_to_save=["lm_head"])
    pair = {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
    changing = write_peft(tmp_path / "changing", pair, target_modules=["lm_head"])
    adapters = (replacing, changing) if replacing_first else (changing, replacing)
    with pytest.raises(MismatchError, match="one of which replaces the weight"):
        merge(tmp_path / "base.safetensors", *adapters, output=tmp_path / "out.safetensors")


def test_a_weight_that_the_training_changed_whole_is_replaced(tmp_path: Path) -> None:
    base, pairs = hugging_face(llama()), factors()
    head = random(9, VOCABULARY, HIDDEN, dtype="fp32")
    write(tmp_path / "base.safetensors", base)
    write_peft(tmp_path / "lora", {**peft(pairs), "base_model.model.lm_head.weight": head}, modules_to_save=["lm_head"])
    report = merge(tmp_path / "base.safetensors", tmp_path / "lora", output=tmp_path / "out.safetensors")
    merged = read(tmp_path / "out.safetensors")["lm_head.weight"]
    assert merged.tobytes() == head.astype(ml_dtypes.bfloat16).tobytes()
    replaced = next(weight for weight in report.weights if weight.name == "lm_head.weight")
    assert [use.kind for use in replaced.adapters] == ["replaced"]
