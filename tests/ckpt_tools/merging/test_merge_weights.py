"""Adapters weighed and combined while they are folded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_cases import (
    BASE,
    HIDDEN,
    TARGETS,
    assert_merged,
    factors,
    mindpet,
    names_of,
    peft,
    random,
    read,
    tree,
    updates,
    write,
    write_peft,
)

from ckpt_tools import merge, unmerge, verify
from surgery.errors import MismatchError, UsageError, VerificationError

WEIGHTS = (0.7, 0.2, -0.1)
RANKS = (2, 4, 7)
LAYERS = (TARGETS, TARGETS[:2], TARGETS[1:3])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base, and three adapters of other ranks, targets and spellings; their alphas are 4."""
    base = write(tmp_path / "base.ckpt", BASE)
    parts = [factors(layers, seed, rank) for seed, (layers, rank) in enumerate(zip(LAYERS, RANKS, strict=True))]
    adapters = [write(tmp_path / "a.ckpt", mindpet(parts[0])), write(tmp_path / "b.safetensors", mindpet(parts[1]))]
    adapters.append(write_peft(tmp_path / "c", peft(parts[2]), r=RANKS[2], lora_alpha=4))
    return base, adapters


@pytest.mark.parametrize("weights", [WEIGHTS, (0.5,), (1, 1, 1)])
def test_each_update_is_multiplied_with_its_weight(
    tmp_path: Path, files: tuple[Path, list[Path]], weights: tuple[float, ...]
) -> None:
    base, adapters = files
    report = merge(base, *adapters, alpha=4, weight=weights, output=tmp_path / "out.ckpt")
    each = weights * 3 if len(weights) == 1 else weights
    merged = read(tmp_path / "out.ckpt")
    terms: dict[str, list[Any]] = {}
    for seed, (layers, rank) in enumerate(zip(LAYERS, RANKS, strict=True)):
        for name, update in updates(factors(layers, seed, rank), 4 / rank).items():
            terms.setdefault(name, []).append(replace(update, scaling=update.scaling * each[seed]))
    for name, weight in BASE.items():
        if name in terms:
            assert_merged(merged[name], "bf16", weight, *terms[name])
        else:
            assert merged[name].tobytes() == weight.tobytes()
    assert [adapter.weight for adapter in report.adapters] == list(each)
    assert {use.weight for weight in report.weights for use in weight.adapters} == set(each)


def test_weight_one_is_no_weight_bit_for_bit(tmp_path: Path, files: tuple[Path, list[Path]]) -> None:
    base, adapters = files
    merge(base, *adapters, alpha=4, output=tmp_path / "plain.ckpt")
    merge(base, *adapters, alpha=4, weight=1, output=tmp_path / "weighed.ckpt")
    assert (tmp_path / "plain.ckpt").read_bytes() == (tmp_path / "weighed.ckpt").read_bytes()


def test_weights_are_in_the_manifest_and_the_metadata(tmp_path: Path, files: tuple[Path, list[Path]]) -> None:
    base, adapters = files
    merge(base, *adapters, alpha=4, weight=WEIGHTS, method="svd", output=tmp_path / "out", format="safetensors")
    manifest = json.loads((tmp_path / "out" / "pet-manifest.json").read_text())
    assert [one["weight"] for one in manifest["inputs"] if one["role"] == "adapter"] == list(WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "found"),
    [([0.0], "a finite number"), ([float("nan")], "a finite number"), ([1, 2], "one for each of 3")],
)
def test_weights_that_make_no_sense_are_refused(
    tmp_path: Path, files: tuple[Path, list[Path]], weights: list[float], found: str
) -> None:
    base, adapters = files
    before = tree(tmp_path)
    with pytest.raises((MismatchError, UsageError), match=found):
        merge(base, *adapters, alpha=4, weight=weights, output=tmp_path / "out.ckpt")
    assert tree(tmp_path) == before


def test_what_is_no_update_cannot_be_weighed(tmp_path: Path, files: tuple[Path, list[Path]]) -> None:
    base, _ = files
    norm = mindpet(factors([TARGETS[0]], 1)) | {"model.norm_out.weight": random(3, HIDDEN)}
    adapter = write(tmp_path / "norm.ckpt", norm)
    with pytest.raises(MismatchError, match=r"weight 0\.5 of a tensor that was saved whole"):
        merge(base, adapter, alpha=4, weight=0.5, output=tmp_path / "out.ckpt")
    dora = peft(factors([TARGETS[0]], 1))
    layer = next(iter(dora)).removesuffix(".lora_A.weight")
    write_peft(tmp_path / "dora", dora | {f"{layer}.lora_magnitude_vector": np.ones(HIDDEN, np.float32)}, use_dora=True)
    with pytest.raises(MismatchError, match=r"weight 0\.5 of a DoRA adapter"):
        merge(base, tmp_path / "dora", weight=0.5, output=tmp_path / "out.ckpt")
    with pytest.raises(MismatchError, match="magnitudes were trained for its own A and B"):
        merge(base, tmp_path / "dora", resize_rank=2, output=tmp_path / "out.ckpt")


def test_a_weighed_merge_is_undone_bit_for_bit(tmp_path: Path, files: tuple[Path, list[Path]]) -> None:
    base, adapters = files
    patch = tmp_path / "patch"
    merge(base, *adapters, alpha=4, weight=WEIGHTS, output=tmp_path / "out.ckpt", unmerge_patch=patch)
    unmerge(tmp_path / "out.ckpt", *reversed(adapters), patch=patch, output=tmp_path / "back.ckpt")
    assert (tmp_path / "back.ckpt").read_bytes() == base.read_bytes()


METHODS: tuple[Mapping[str, Any], ...] = (
    {"method": "svd"},
    {"method": "ties_svd", "density": 0.5},
    {"method": "dare_linear_svd", "density": 0.5, "seed": 2},
    {"method": "cat", "resize_rank": 3},
    {"method": "cat", "energy": 0.9},
)


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_a_combination_is_proved_and_another_one_is_found_out(
    tmp_path: Path, files: tuple[Path, list[Path]], options: Mapping[str, Any]
) -> None:
    base, adapters = files
    told: dict[str, Any] = {"alpha": 4, "weight": WEIGHTS, **options}
    report = merge(base, *adapters, output=tmp_path / "out.ckpt", verify=True, **told)
    assert report.method == options["method"]
    assert all(weight.combination is not None for weight in report.weights)
    assert verify(base, *adapters, merged=tmp_path / "out.ckpt", strict=True, **told).passed
    for change in ({"weight": (0.7, 0.2, 0.1)}, {"method": "cat", **dict.fromkeys(set(options) - {"method"})}):
        with pytest.raises(VerificationError):
            verify(base, *adapters, merged=tmp_path / "out.ckpt", strict=True, **{**told, **_without_none(change)})


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """`seed` of a proof is the sample's too, and has to be a number."""
    return {name: (0 if name == "seed" else value) for name, value in options.items()}


def test_only_a_sum_can_be_undone_or_written_in_parts(tmp_path: Path, files: tuple[Path, list[Path]]) -> None:
    base, adapters = files
    for option in ({"unmerge_patch": tmp_path / "patch"}, {"ranks": "0-1"}):
        with pytest.raises(UsageError, match="--adapters-only"):
            merge(base, *adapters, alpha=4, method="svd", output=tmp_path / "out", **option)  # type: ignore[arg-type]


def test_methods_on_a_and_b_want_one_rank_and_nothing_is_left_behind(
    tmp_path: Path, files: tuple[Path, list[Path]]
) -> None:
    base, adapters = files
    before = tree(tmp_path)
    with pytest.raises(MismatchError, match=r"one rank.*--method ties of ranks 2, 4"):
        merge(base, *adapters, alpha=4, method="ties", density=0.5, output=tmp_path / "out.ckpt")
    assert tree(tmp_path) == before
    assert names_of(tmp_path) == ["a.ckpt", "b.safetensors", "base.ckpt", "c"]


def test_a_format_of_adapters_is_for_adapters(tmp_path: Path, files: tuple[Path, list[Path]]) -> None:
    base, adapters = files
    with pytest.raises(UsageError, match="--adapters-only"):
        merge(base, *adapters, alpha=4, format="peft", output=tmp_path / "out")
