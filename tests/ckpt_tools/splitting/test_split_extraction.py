"""A LoRA extracted from a full fine-tune, with the proof of what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merge_cases import NUMPY, Arrays, hugging_face, llama, random, read, save, tree
from rank_folders import read_arrays, strategy_of, write_ranks
from split_cases import refusal
from transform_cases import ROWS, write_strategy

from ckpt_tools import merge, split
from ckpt_tools.layout.model import Layout
from ckpt_tools.progress import Silent
from surgery.errors import InputChangedError, NonFiniteError

LAYERS = ("attention.wq", "attention.wo", "feed_forward.w2")


def tuned_of(base: Arrays, rank: int, layers: tuple[str, ...] = LAYERS) -> Arrays:
    """A fine-tune whose matrices changed by a product of this rank."""
    tuned = dict(base)
    for seed, (name, weight) in enumerate(base.items()):
        if any(f".{layer}.weight" in name for layer in layers):
            rows, columns = weight.shape
            change = random(2 * seed, rows, rank) @ random(2 * seed + 1, rank, columns)
            tuned[name] = (weight.astype(np.float32) + change).astype(weight.dtype)
    return tuned


def write(folder: Path, base: Arrays, tuned: Arrays, suffix: str = ".ckpt") -> tuple[Path, Path]:
    metadata = {"format": "pt"} if suffix == ".safetensors" else None
    for name, arrays in (("base", base), ("tuned", tuned)):
        save(folder / f"{name}{suffix}", arrays, metadata=metadata)
    return folder / f"base{suffix}", folder / f"tuned{suffix}"


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("where", ["base", "tuned", "both"])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float, where: str) -> None:
    name = "model.layers.0.attention.wq.weight"
    first = llama("fp32")
    files = {"base": dict(first), "tuned": tuned_of(first, 1)}
    for number, key in enumerate(files):
        if where in (key, "both"):
            files[key][name] = files[key][name].copy()
            files[key][name][1, 2] = -value if number else value
    if value == 3e38 and where != "both":
        return  # it is a number like others, and so is the change
    base, tuned = write(tmp_path, *files.values())
    text = refusal(tmp_path, 5, tuned, base=base, rank=1)
    assert name in text
    assert "NaN or Inf" in text


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("form", ["keep", "peft"])
def test_a_true_lora_in_fp32_is_found_and_merges_back_to_within_rounding(tmp_path: Path, rank: int, form: str) -> None:
    first = llama("fp32")
    base, tuned = write(tmp_path, first, tuned_of(first, rank))
    report = split(tuned, base=base, energy=1.0, format=form, output=tmp_path / "out")
    assert {layer.rank for layer in report.extracted} == {rank}
    assert len(report.extracted) == 2 * len(LAYERS)
    assert min(layer.energy for layer in report.extracted) > 1 - 1e-6  # of values in float32
    assert max(layer.error for layer in report.extracted) < 1e-5
    merge(base, tmp_path / "out", output=tmp_path / "merged.ckpt")
    found, expected = read(tmp_path / "merged.ckpt"), read(tuned)
    for name, array in expected.items():
        assert np.max(np.abs(found[name] - array)) <= 4e-7


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_change_that_is_not_finite_is_refused(tmp_path: Path, value: float, rank: int | None) -> None:
    first = llama("fp32")
    after = tuned_of(first, 2)
    name = next(name for name in after if name.endswith("attention.wq.weight"))
    after[name][1, 2] = value
    base, tuned = write(tmp_path, first, after)
    how = {"energy": 1.0} if rank is None else {"rank": rank}
    with pytest.raises(NonFiniteError, match=f"{name}: expected finite values in both, found NaN or Inf in 1 values"):
        split(tuned, base=base, output=tmp_path / "out", **how)
    assert tree(tmp_path).keys() == {"base.ckpt", "tuned.ckpt"}
    report = split(tuned, base=base, output=tmp_path / "out", exclude=[name], **how)
    assert name.removesuffix(".weight") not in {layer.name for layer in report.extracted}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_rank_is_found_under_the_rounding_of_16_bits(tmp_path: Path, dtype: str) -> None:
    first = {f"layers.{n}.wq.weight": random(n, 96, 128, dtype=dtype, size=0.02) for n in range(2)}
    tuned = {}
    for n, (name, weight) in enumerate(first.items()):
        change = random(10 + n, 96, 4) @ random(20 + n, 4, 128)
        tuned[name] = (weight.astype(np.float32) + change).astype(NUMPY[dtype])
    base, path = write(tmp_path, first, tuned)
    report = split(path, base=base, energy=1.0, output=tmp_path / "out")
    assert {layer.rank for layer in report.extracted} == {4}


def test_the_proof_is_what_merging_gives(tmp_path: Path) -> None:
    first = llama("bf16")
    base, tuned = write(tmp_path, first, tuned_of(first, 8))
    report = split(tuned, base=base, rank=3, output=tmp_path / "out")
    merge(base, tmp_path / "out", output=tmp_path / "merged.ckpt")
    merged, after = read(tmp_path / "merged.ckpt"), read(tuned)
    for layer in report.extracted:
        change = after[layer.name].astype(np.float64) - first[layer.name].astype(np.float64)
        wrong = merged[layer.name].astype(np.float64) - after[layer.name].astype(np.float64)
        assert layer.delta_norm == pytest.approx(np.linalg.norm(change), rel=1e-5)
        assert layer.error == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(change), rel=1e-4)
        same = merged[layer.name].view(np.uint16) == after[layer.name].view(np.uint16)
        assert layer.equal_share == pytest.approx(np.mean(same))
        values = np.linalg.svd(change, compute_uv=False)
        assert layer.energy == pytest.approx(np.sum(values[:3] ** 2) / np.sum(values**2), rel=1e-4)
        assert layer.rank == 3


def test_an_energy_gives_each_layer_the_rank_that_it_needs(tmp_path: Path) -> None:
    first = {name: random(n, 64, 64) for n, name in enumerate(("a.weight", "b.weight"))}
    changes = [random(5, 64, 2) @ random(6, 2, 64), random(7, 64, 64, size=0.01)]
    tuned = {name: first[name] + change for name, change in zip(first, changes, strict=True)}
    base, path = write(tmp_path, first, tuned)
    report = split(path, base=base, energy=0.9, output=tmp_path / "out")
    ranks = {layer.name: layer.rank for layer in report.extracted}
    assert ranks["a.weight"] <= 2 < 20 < ranks["b.weight"]
    assert all(layer.energy >= 0.9 for layer in report.extracted)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == set(ranks.values())
    # Alpha is the rank everywhere: the scale is 1.
    merged = merge(base, tmp_path / "out", output=tmp_path / "merged.ckpt")
    assert {use.scaling for weight in merged.weights for use in weight.adapters} == {1.0}


def test_what_is_no_matrix_and_changed_is_saved_whole(tmp_path: Path) -> None:
    first = llama("fp32")
    second = tuned_of(first, 2)
    for name in ("model.norm_out.weight", "model.layers.0.ffn_norm.weight"):
        second[name] = first[name] + np.float32(0.5)
    base, tuned = write(tmp_path, first, second)
    report = split(tuned, base=base, rank=2, output=tmp_path / "out")
    saved = [parameter.name for parameter in report.parameters if parameter.role == "weight"]
    assert set(saved) == {"model.norm_out.weight", "model.layers.0.ffn_norm.weight"}
    merge(base, tmp_path / "out", output=tmp_path / "merged.ckpt")
    for name in saved:
        assert np.array_equal(read(tmp_path / "merged.ckpt")[name], second[name])


@pytest.mark.parametrize("embeddings", ["save", "extract", "skip"])
def test_embeddings_and_heads_are_saved_extracted_or_left_out(tmp_path: Path, embeddings: str) -> None:
    first = hugging_face(llama("fp32"))
    second = dict(first)
    for seed, name in enumerate(("model.embed_tokens.weight", "lm_head.weight")):
        rows, columns = first[name].shape
        second[name] = first[name] + random(seed, rows, 2) @ random(seed + 5, 2, columns)
    second["model.layers.0.self_attn.q_proj.weight"] = first["model.layers.0.self_attn.q_proj.weight"] + np.float32(0.1)
    base, tuned = write(tmp_path, first, second, ".safetensors")
    report = split(tuned, base=base, energy=1.0, embeddings=embeddings, output=tmp_path / "out")
    extracted = {layer.name for layer in report.extracted}
    assert ("lm_head.weight" in extracted) == (embeddings == "extract")
    names = set(read_arrays(tmp_path / "out" / "adapter_model.safetensors"))
    assert ("base_model.model.model.embed_tokens.lora_embedding_A" in names) == (embeddings == "extract")
    assert ("base_model.model.lm_head.weight" in names) == (embeddings == "save")
    assert bool(report.warnings) == (embeddings == "skip")
    merge(base, tmp_path / "out", output=tmp_path / "merged.safetensors")
    merged = read_arrays(tmp_path / "merged.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected = first[name] if embeddings == "skip" else second[name]
        assert np.max(np.abs(merged[name] - expected)) < 1e-6


def test_what_is_excluded_stays_as_it_is_in_the_base(tmp_path: Path) -> None:
    first = llama("fp32")
    base, tuned = write(tmp_path, first, tuned_of(first, 2))
    report = split(tuned, base=base, rank=2, exclude=["*layers.1.*"], output=tmp_path / "out")
    assert len(report.extracted) == len(LAYERS)
    assert not any("layers.1" in layer.name for layer in report.extracted)


@pytest.mark.parametrize("dtype", ["keep", "bf16", "fp16"])
def test_factors_are_fp32_unless_another_type_is_asked_for(tmp_path: Path, dtype: str) -> None:
    first = llama("bf16")
    base, tuned = write(tmp_path, first, tuned_of(first, 2))
    report = split(tuned, base=base, rank=2, dtype=dtype, output=tmp_path / "out")
    wanted = "fp32" if dtype == "keep" else dtype
    assert {parameter.dtype for parameter in report.parameters} == {wanted}


def test_the_extraction_is_the_same_on_every_run_and_the_inputs_stay(tmp_path: Path) -> None:
    first = {"a.weight": random(0, 700, 600), "b.weight": random(1, 700, 600)}
    tuned = {name: array + random(2, 700, 600, size=0.01) for name, array in first.items()}
    base, path = write(tmp_path, first, tuned)
    before = tree(tmp_path)
    for name in ("one", "other"):
        split(path, base=base, rank=8, output=tmp_path / f"{name}.safetensors", seed=3, threads=1)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    assert {name: value for name, value in tree(tmp_path).items() if name in before} == before


def test_a_fine_tune_in_slices_of_ranks_is_extracted_too(tmp_path: Path) -> None:
    first = {"layers.0.wq.weight": random(0, 32, 16), "layers.1.wq.weight": random(1, 32, 16)}
    second = {name: array + random(4, 32, 2) @ random(5, 2, 16) for name, array in first.items()}
    strategy = strategy_of({name: Layout((4,), ROWS) for name in first})
    for name, arrays in (("base", first), ("tuned", second)):
        write_ranks(tmp_path / name, arrays, strategy)
    path = write_strategy(tmp_path / "strategy", strategy)
    report = split(
        tmp_path / "tuned",
        base=tmp_path / "base",
        src_strategy=path,
        base_strategy=path,
        energy=1.0,
        output=tmp_path / "out",
    )
    assert [layer.rank for layer in report.extracted] == [2, 2]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({}, 2, "neither --rank nor --energy"),
        ({"rank": 2, "energy": 0.5}, 2, "--rank and --energy"),
        ({"energy": 1.5}, 2, "an energy in (0, 1]"),
        ({"rank": 2, "alpha": 8}, 2, "--alpha"),
        ({"rank": 2, "remainder": "rest.ckpt"}, 2, "the rest is BASE"),
        ({"rank": 2, "pet_type": "lora"}, 2, "--pet-type and --include"),
        ({"rank": 2, "embeddings": "drop"}, 2, "--embeddings"),
    ],
    ids=str,
)
def test_options_that_contradict_an_extraction(
    tmp_path: Path, options: dict[str, object], code: int, says: str
) -> None:
    first = llama("fp32")
    base, tuned = write(tmp_path, first, tuned_of(first, 2))
    assert says in refusal(tmp_path, code, tuned, base=base, **options)


def test_networks_that_are_not_one_are_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    first = llama("fp32")
    second = tuned_of(first, 2) | {"extra.weight": random(0, 4, 4), "lm_head.weight": random(1, 48, 16)}
    base, tuned = write(tmp_path, first, second)
    text = refusal(tmp_path, 5, tuned, base=base, rank=2)
    assert "extra.weight: expected the same network, found nothing of that name" in text
    assert "lm_head.weight: expected (40, 16), as in" in text
    split(tuned, base=base, rank=2, exclude=["extra.*", "lm_head.*"], output=tmp_path / "out")


def test_a_base_that_is_the_fine_tune_itself_is_refused(tmp_path: Path) -> None:
    base, tuned = write(tmp_path, llama("fp32"), llama("fp32"))
    assert "Are the two the same files?" in refusal(tmp_path, 5, tuned, base=base, rank=2)


def test_an_input_that_is_written_to_during_the_extraction_calls_it_off(tmp_path: Path) -> None:
    """The extracted factors wait in a file of their own, so that nobody reads the inputs when the output is written."""
    base = llama("fp32")
    before, tuned = write(tmp_path, base, tuned_of(base, 2))

    class Writer(Silent):
        def advance(self, done_bytes: int) -> None:
            tuned.write_bytes(tuned.read_bytes())

    with pytest.raises(InputChangedError, match="changed while it was being read"):
        split(tuned, base=before, rank=2, output=tmp_path / "out.ckpt", progress=Writer())
    assert not (tmp_path / "out.ckpt").exists()


def test_a_limit_below_what_the_largest_layer_takes_is_refused(tmp_path: Path) -> None:
    """A layer is extracted whole: 24 bytes and more for each of its 2^22 elements."""
    name = "model.layers.0.attention.wq.weight"
    before = {name: np.zeros((2048, 2048), np.float32)}
    after = {name: np.zeros((2048, 2048), np.float32)}
    after[name][0, 0] = 1
    base, tuned = write(tmp_path, before, after)
    text = refusal(tmp_path, 7, tuned, base=base, rank=1, max_memory="180MB")
    assert "--max-memory" in text
    assert "for the largest layer, which is extracted whole" in text
    split(tuned, base=base, rank=1, max_memory="250MB", output=tmp_path / "delta.ckpt")
