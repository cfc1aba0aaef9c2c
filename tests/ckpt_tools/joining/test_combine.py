"""Adapters combined to an adapter: names, configuration, values, what is carried along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_cases import (
    BASE,
    HIDDEN,
    INNER,
    TARGETS,
    Arrays,
    factors,
    hugging_face,
    mindpet,
    names_of,
    peft,
    random,
    read,
    save,
    tree,
    write,
    write_peft,
)

from ckpt_tools import combine, merge, open_checkpoint
from surgery.adapter_facts import surgery_section
from surgery.errors import (
    MismatchError,
    NonFiniteError,
)

QUERY = "model.layers.0.attention.wq"
VALUE = "model.layers.0.attention.wv"
HF_QUERY = "model.layers.0.self_attn.q_proj"


def _delta(path: Path, layer: str) -> np.ndarray:
    """What an adapter adds to a layer, by its own file and configuration, whose scale is 1."""
    tensors = read(path)
    a = next(array for name, array in tensors.items() if layer in name and name.lower().rstrip(".weight").endswith("a"))
    b = next(array for name, array in tensors.items() if layer in name and name.lower().rstrip(".weight").endswith("b"))
    return np.asarray(b.astype(np.float64) @ a.astype(np.float64))


def _update(pairs: Arrays, layer: str, scaling: float) -> np.ndarray:
    return np.asarray(scaling * pairs[f"{layer}.B"].astype(np.float64) @ pairs[f"{layer}.A"].astype(np.float64))


def _config(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "adapter_config.json").read_text()))


def test_adapters_of_other_spellings_formats_ranks_and_targets_become_one(tmp_path: Path) -> None:
    first, second = factors([QUERY, VALUE], 1, rank=2), factors([QUERY, "model.layers.1.attention.wo"], 2, rank=5)
    mindformers = write(tmp_path / "first.ckpt", mindpet(first))
    write_peft(tmp_path / "second", peft(second), r=5, lora_alpha=10, target_modules=["q_proj", "o_proj"])
    report = combine(
        mindformers, tmp_path / "second", alpha=[3, 10], weight=[0.5, -2], output=tmp_path / "out", format="safetensors"
    )
    names = list(read(tmp_path / "out"))
    assert all(".mindpet_delta_lora_" in name for name in names)
    assert report.adapters[1].names == "translated to mindformers names"
    assert [report.adapters[i].weight for i in range(2)] == [0.5, -2]
    expected = _update(first, QUERY, 0.5 * 3 / 2) + _update(second, QUERY, -2 * 10 / 5)
    np.testing.assert_allclose(_delta(tmp_path / "out", QUERY), expected, atol=1e-7)
    np.testing.assert_allclose(_delta(tmp_path / "out", VALUE), _update(first, VALUE, 0.5 * 3 / 2), atol=1e-7)
    other = "model.layers.1.attention.wo"
    np.testing.assert_allclose(_delta(tmp_path / "out", other), _update(second, other, -2 * 10 / 5), atol=1e-7)
    assert [layer.rank for layer in report.layers] == [7, 2, 5]
    assert [layer.adapters for layer in report.layers] == [(0, 1), (0,), (1,)]


def test_names_behind_another_prefix_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    bare = {name.removeprefix("model."): array for name, array in mindpet(factors(TARGETS, 5)).items()}
    write(tmp_path / "first.ckpt", mindpet(factors(TARGETS, 1)))
    write(tmp_path / "second.ckpt", bare)
    report = combine(tmp_path / "first.ckpt", tmp_path / "second.ckpt", alpha=4, output=tmp_path / "out.ckpt")
    assert len(report.layers) == len(TARGETS)
    assert all(layer.adapters == (0, 1) for layer in report.layers)
    assert report.adapters[1].names == "behind 'model.'"


@pytest.mark.parametrize("format", ["peft", "mindformers", "slora"])
def test_the_result_is_written_for_whoever_loads_it(tmp_path: Path, format: str) -> None:
    write_peft(tmp_path / "a", peft(factors(TARGETS, 1)))
    write_peft(tmp_path / "b", peft(factors(TARGETS, 2)))
    combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "out", format=format)
    folder = tmp_path / "out" / ("out" if format == "slora" else "")
    assert _config(folder)["r"] == _config(folder)["lora_alpha"] == 8
    suffix = {"peft": ".lora_A.weight", "mindformers": ".mindpet_delta_lora_a", "slora": ".lora_a"}[format]
    assert sum(name.endswith(suffix) for name in read(folder)) == len(TARGETS)
    # What was written is an adapter that a merge takes, of the scale 1.
    save(tmp_path / "base.safetensors", hugging_face(BASE))
    merged = merge(tmp_path / "base.safetensors", folder, output=tmp_path / "merged.safetensors")
    assert {use.scaling for weight in merged.weights for use in weight.adapters} == {1.0}


def test_what_is_resized_to_one_rank_may_have_had_several(tmp_path: Path) -> None:
    """The place of the output is looked at before the ranks are those of the result."""
    write_peft(tmp_path / "a", peft(factors([QUERY, VALUE], 1, rank=4)))
    write_peft(tmp_path / "b", peft(factors([QUERY], 2, rank=2)), r=2)
    combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "out", format="slora", resize_rank=1)
    assert _config(tmp_path / "out" / "out")["r"] == 1
    with pytest.raises(MismatchError, match="several ranks or alphas"):
        combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "cat", format="slora")


def test_layers_of_several_ranks_are_told_apart_in_the_configuration(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY, VALUE], 1, rank=4)), base_model_name_or_path="llama")
    write_peft(tmp_path / "b", peft(factors([QUERY], 2, rank=4)), base_model_name_or_path="llama", fan_in_fan_out=True)
    combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "out")
    config = _config(tmp_path / "out")
    ranks = {**dict.fromkeys((HF_QUERY, "model.layers.0.self_attn.v_proj"), config["r"]), **config["rank_pattern"]}
    assert ranks == {HF_QUERY: 8, "model.layers.0.self_attn.v_proj": 4}
    alphas = {**dict.fromkeys(ranks, config["lora_alpha"]), **config["alpha_pattern"]}
    assert alphas == ranks
    assert config["base_model_name_or_path"] == "llama"
    assert config["fan_in_fan_out"] is True
    assert config["use_rslora"] is False


@pytest.mark.parametrize(
    "options",
    [
        {"method": "svd"},
        {"method": "ties", "density": 0.5},
        {"method": "dare_linear", "density": 0.4, "seed": 3},
        {"method": "dare_ties_svd", "density": 0.6, "seed": 4},
        {"method": "cat", "resize_rank": 3},
    ],
)
def test_merging_the_combination_is_combining_while_merging(tmp_path: Path, options: Mapping[str, Any]) -> None:
    base = write(tmp_path / "base.ckpt", BASE)
    write_peft(tmp_path / "a", peft(factors(TARGETS, 1)))
    second = write(tmp_path / "b.ckpt", mindpet(factors([TARGETS[1], TARGETS[2]], 2)))
    told = {"alpha": [8, 4], "weight": [0.6, -0.3], **options}
    combine(tmp_path / "a", second, output=tmp_path / "both", **told)
    merge(base, tmp_path / "both", output=tmp_path / "later.ckpt")
    merge(base, tmp_path / "a", second, output=tmp_path / "once.ckpt", **told)
    later, once = read(tmp_path / "later.ckpt"), read(tmp_path / "once.ckpt")
    for name, array in once.items():
        np.testing.assert_array_equal(array, later[name])


def test_one_adapter_is_resized_and_says_what_it_loses(tmp_path: Path) -> None:
    pairs = factors([QUERY], 1, rank=6)
    write_peft(tmp_path / "a", peft(pairs), r=6, lora_alpha=12)
    report = combine(tmp_path / "a", resize_rank=2, output=tmp_path / "out")
    whole = _update(pairs, QUERY, 2.0)
    values = np.linalg.svd(whole, compute_uv=False)
    found = _delta(tmp_path / "out", HF_QUERY)
    assert np.linalg.norm(found - whole) == pytest.approx(np.sqrt(np.sum(values[2:] ** 2)), rel=1e-5)
    (layer,) = report.layers
    assert layer.relative_error == pytest.approx(np.linalg.norm(found - whole) / np.linalg.norm(whole), rel=1e-5)
    assert layer.energy == pytest.approx(np.sum(values[:2] ** 2) / np.sum(values**2), rel=1e-6)


@pytest.mark.parametrize("dtype", ["keep", "fp16", "bf16"])
def test_the_type_is_the_adapters_or_what_is_asked_for(tmp_path: Path, dtype: str) -> None:
    write(tmp_path / "a.ckpt", mindpet(factors([QUERY], 1, dtype="bf16")))
    write(tmp_path / "b.ckpt", mindpet(factors([QUERY], 2, dtype="bf16")))
    combine(tmp_path / "a.ckpt", tmp_path / "b.ckpt", alpha=8, dtype=dtype, output=tmp_path / "out.ckpt")
    wanted = "bf16" if dtype == "keep" else dtype
    assert {tensor.dtype.name for tensor in open_checkpoint(tmp_path / "out.ckpt").tensors.values()} == {wanted}
    write(tmp_path / "c.ckpt", mindpet(factors([QUERY], 3)))
    combine(tmp_path / "a.ckpt", tmp_path / "c.ckpt", alpha=8, output=tmp_path / "mixed.ckpt")
    assert {tensor.dtype.name for tensor in open_checkpoint(tmp_path / "mixed.ckpt").tensors.values()} == {"fp32"}


def test_experts_embeddings_and_biases_of_b_are_combined(tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts.weight1"
    embedding = "base_model.model.model.embed_tokens.lora_embedding_"
    for number, name in enumerate(("a", "b")):
        arrays = {
            f"{experts}_lora_a": random(number, 3, HIDDEN, 2),
            f"{experts}_lora_b": random(9 + number, 3, 2, INNER),
        }
        save(tmp_path / f"{name}.safetensors", arrays)
        linear = peft(factors([QUERY], number))
        linear[f"base_model.model.{HF_QUERY}.lora_B.bias"] = np.full(HIDDEN, 1.0 + number, np.float32)
        linear |= {f"{embedding}A": random(5 + number, 4, 40), f"{embedding}B": random(7 + number, HIDDEN, 4)}
        write_peft(tmp_path / name, linear, lora_bias=True, target_modules=["q_proj", "embed_tokens"])
    combine(tmp_path / "a.safetensors", tmp_path / "b.safetensors", scaling=2, output=tmp_path / "experts.safetensors")
    found = read(tmp_path / "experts.safetensors")
    both = [read(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    expected = sum(2.0 * one[f"{experts}_lora_a"] @ one[f"{experts}_lora_b"] for one in both)
    np.testing.assert_allclose(found[f"{experts}_lora_a"] @ found[f"{experts}_lora_b"], expected, atol=1e-6)
    combine(tmp_path / "a", tmp_path / "b", weight=[0.5, 3], output=tmp_path / "out")
    tensors = read(tmp_path / "out")
    np.testing.assert_array_equal(tensors[f"base_model.model.{HF_QUERY}.lora_B.bias"], 2 * (0.5 * 1 + 3 * 2))
    assert tensors[f"{embedding}A"].shape == (8, 40)
    assert _config(tmp_path / "out")["lora_bias"] is True


def test_a_bias_of_b_that_is_saved_as_a_row_is_summed_too(tmp_path: Path) -> None:
    name = f"base_model.model.{HF_QUERY}.lora_B.bias"
    for number, shape in enumerate(((HIDDEN,), (1, HIDDEN))):
        arrays = peft(factors([QUERY], number)) | {name: np.full(shape, 1.0 + number, np.float32)}
        write_peft(tmp_path / str(number), arrays, lora_bias=True, target_modules=["q_proj"])
    combine(tmp_path / "0", tmp_path / "1", scaling=1, output=tmp_path / "out")
    np.testing.assert_array_equal(read(tmp_path / "out")[name], np.full(HIDDEN, 3.0))
    combine(tmp_path / "1", tmp_path / "0", scaling=1, output=tmp_path / "row")
    np.testing.assert_array_equal(read(tmp_path / "row")[name], np.full((1, HIDDEN), 3.0))


def test_what_one_adapter_saves_whole_goes_along(tmp_path: Path) -> None:
    head = {"base_model.model.lm_head.weight": random(1, 40, HIDDEN)}
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    write_peft(tmp_path / "b", peft(factors([QUERY], 2)) | head, modules_to_save=["lm_head"])
    combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "out")
    (name,) = (name for name in read(tmp_path / "out") if "lora_" not in name)
    np.testing.assert_array_equal(read(tmp_path / "out")[name], next(iter(head.values())))
    assert _config(tmp_path / "out")["modules_to_save"] == ["lm_head"]
    write_peft(tmp_path / "same", peft(factors([QUERY], 3)) | head, modules_to_save=["lm_head"])
    combine(tmp_path / "b", tmp_path / "same", output=tmp_path / "alike")
    other = {name: array + 1 for name, array in head.items()}
    write_peft(tmp_path / "c", peft(factors([QUERY], 3)) | other, modules_to_save=["lm_head"])
    with pytest.raises(MismatchError, match=r"saved whole, with other values, in .*b too"):
        combine(tmp_path / "b", tmp_path / "c", output=tmp_path / "no")
    with pytest.raises(MismatchError, match=r"weight 0\.5 of a tensor that was saved whole"):
        combine(tmp_path / "a", tmp_path / "b", weight=0.5, output=tmp_path / "no")
    in_training = {"base_model.model.lm_head.modules_to_save.default.weight": next(iter(other.values()))}
    write_peft(tmp_path / "d", peft(factors([VALUE], 4)) | in_training, modules_to_save=["lm_head"])
    for first, second in (("b", "d"), ("d", "b")):
        with pytest.raises(MismatchError, match=rf"saved whole, with other values, in .*{first} too"):
            combine(tmp_path / first, tmp_path / second, output=tmp_path / "no")
    combine(tmp_path / "d", tmp_path / "c", output=tmp_path / "once")
    assert sum("lm_head" in name for name in read(tmp_path / "once")) == 1


def test_what_goes_along_has_the_type_that_is_asked_for_and_must_fit_into_it(tmp_path: Path) -> None:
    head = {"base_model.model.lm_head.weight": random(1, 40, HIDDEN)}
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)) | head, modules_to_save=["lm_head"])
    combine(tmp_path / "a", dtype="fp16", output=tmp_path / "out")
    assert {tensor.dtype.name for tensor in open_checkpoint(tmp_path / "out").tensors.values()} == {"fp16"}
    huge = {name: array * np.float32(1e7) for name, array in head.items()}
    write_peft(tmp_path / "b", peft(factors([QUERY], 1)) | huge, modules_to_save=["lm_head"])
    with pytest.raises(NonFiniteError, match=r"Choose --dtype fp32\.$"):
        combine(tmp_path / "b", dtype="fp16", output=tmp_path / "no")
    assert not (tmp_path / "no").exists()
    combine(tmp_path / "b", dtype="fp32", output=tmp_path / "wide")
    large = {name: array * np.float32(1e7) for name, array in peft(factors([QUERY], 1)).items()}
    write_peft(tmp_path / "c", large)
    with pytest.raises(NonFiniteError, match=r"Choose --dtype fp32\.$"):
        combine(tmp_path / "c", dtype="fp16", output=tmp_path / "no")


def test_adapters_without_a_layer_in_common_lie_side_by_side_and_it_is_said(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    write_peft(tmp_path / "b", peft(factors([VALUE], 2)))
    report = combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "out")
    assert any("no layer in common" in warning for warning in report.warnings)
    assert len(report.layers) == 2


def test_a_dry_run_computes_and_writes_nothing(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    before = tree(tmp_path)
    report = combine(tmp_path / "a", resize_rank=1, output=tmp_path / "out", dry_run=True)
    assert report.dry_run
    assert report.layers[0].relative_error > 0
    assert tree(tmp_path) == before
    assert names_of(tmp_path) == ["a"]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_peft(tmp_path / name, peft(factors(TARGETS, number)))
    options: dict[str, Any] = {"method": "dare_ties_svd", "density": 0.5, "seed": 1}
    combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "one.safetensors", threads=1, **options)
    combine(tmp_path / "a", tmp_path / "b", output=tmp_path / "two.safetensors", threads=3, **options)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_a_single_ckpt_has_its_configuration_beside_it(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", peft(factors([QUERY], 1)))
    combine(tmp_path / "a", resize_rank=2, output=tmp_path / "out.ckpt")
    assert json.loads((tmp_path / "out.adapter_config.json").read_text())["r"] == 2
    assert surgery_section("")["version"] in (tmp_path / "out.adapter_config.json").read_text()
