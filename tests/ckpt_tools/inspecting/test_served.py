"""A folder of adapters, as it is served: what each is, what is wrong, and how alike they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merge_cases import HIDDEN, TARGETS, Arrays, factors, mindpet, peft, random, save, write, write_peft

from ckpt_tools import combine, inspect_checkpoint
from ckpt_tools.pages import write_page
from ckpt_tools.reports import AdapterSimilarity, InspectReport
from surgery.errors import UsageError

QUERY, VALUE = TARGETS[0], TARGETS[1]


def _flat(pairs: Arrays, scaling: float) -> np.ndarray:
    """All that an adapter adds to TARGETS, as one vector."""
    zero = np.zeros((HIDDEN, HIDDEN))
    updates = [scaling * pairs[f"{t}.B"] @ pairs[f"{t}.A"] if f"{t}.A" in pairs else zero for t in TARGETS]
    return np.concatenate([np.asarray(update, np.float64).reshape(-1) for update in updates])


def _pair(report: InspectReport, first: str, other: str) -> AdapterSimilarity:
    return next(one for one in report.similarities if (one.first, one.other) == (first, other))


def test_norms_and_cosines_are_those_of_the_whole_updates(tmp_path: Path) -> None:
    sets = {"a": factors(TARGETS, 1, rank=2), "b": factors(TARGETS[:3], 2, rank=5), "c": factors(TARGETS[2:], 3)}
    vectors = {}
    for name, pairs in sets.items():
        rank = next(iter(pairs.values())).shape[0]
        write_peft(tmp_path / "served" / name, peft(pairs), r=rank, lora_alpha=6)
        vectors[name] = _flat(pairs, 6 / rank)
    report = inspect_checkpoint(tmp_path / "served")
    assert report.kind == "adapters"
    for adapter in report.adapters:
        assert adapter.norm == pytest.approx(float(np.linalg.norm(vectors[adapter.name])), rel=1e-6)
    for pair in report.similarities:
        one, other = vectors[pair.first], vectors[pair.other]
        expected = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
        assert pair.cosine == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert [_pair(report, *key).common_layers for key in (("a", "b"), ("a", "c"), ("b", "c"))] == [3, 2, 1]
    facts = report.adapters[1]
    assert (facts.ranks, facts.layers, facts.targets, facts.method) == ((5,), 3, ("q_proj", "v_proj"), "LoRA")
    assert facts.scalings == (pytest.approx(1.2),)


def test_a_multiple_is_found_in_another_spelling(tmp_path: Path) -> None:
    write_peft(tmp_path / "served" / "a", peft(factors(TARGETS, 1)))
    combine(tmp_path / "served" / "a", weight=-3, format="mindformers", output=tmp_path / "served" / "b")
    report = inspect_checkpoint(tmp_path / "served")
    assert report.adapters[1].names == "translated to huggingface names"
    (pair,) = report.similarities
    assert pair.cosine == pytest.approx(-1, abs=1e-6)
    assert pair.closest_cosine == pytest.approx(-1, abs=1e-6)
    assert pair.common_layers == len(TARGETS)


def test_what_is_wrong_with_one_is_said_and_keeps_no_other_from_being_read(tmp_path: Path) -> None:
    served = tmp_path / "served"
    write_peft(served / "fine", peft(factors(TARGETS, 1)))
    write_peft(served / "half", {name: one for name, one in peft(factors([QUERY], 2)).items() if "lora_A" in name})
    write_peft(served / "rank", peft(factors([QUERY], 3, rank=3)), r=8)
    prompt = {"model.layers.0.mindpet_delta_prefixtuning_key": random(1, 4, 4)}
    save(_folder(served / "prompt") / "adapter_model.ckpt", prompt)
    (served / "prompt" / "adapter_config.json").write_text(json.dumps({"pet_config": {"pet_type": "prefixtuning"}}))
    (_folder(served / "empty") / "adapter_config.json").write_text("{}")
    report = inspect_checkpoint(served)
    problems = {adapter.name: " ".join(adapter.problems) for adapter in report.adapters}
    assert problems["fine"] == ""
    assert "no B for layer" in problems["half"]
    assert "rank 8" in problems["rank"]
    assert problems["prompt"]
    assert "expected weights" in problems["empty"]
    assert report.adapters[1].norm is not None
    assert report.similarities == ()


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_sloras_table_is_compared_with_the_folders_and_its_places_are_not_followed(tmp_path: Path) -> None:
    served = tmp_path / "served"
    write(_folder(tmp_path / "outside" / "secret") / "adapter_model.ckpt", mindpet(factors([QUERY], 9)))
    write(_folder(served / "a") / "adapter_model.ckpt", mindpet(factors([QUERY], 1)))
    (served / "a" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    write_peft(served / "unnamed", peft(factors([QUERY], 2)))
    table = {"a": "/elsewhere/a", "secret": str(tmp_path / "outside" / "secret"), "../outside/secret": "x"}
    (served / "lora_adapter.json").write_text(json.dumps(table))
    report = inspect_checkpoint(served)
    assert [adapter.name for adapter in report.adapters] == ["a", "unnamed"]
    warnings = " ".join(report.warnings)
    assert "names secret, which is no folder" in warnings
    assert "names ../outside/secret" in warnings
    assert "unnamed is not in" in warnings


def test_several_bases_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_peft(tmp_path / "served" / name, peft(factors([QUERY], 1)), base_model_name_or_path=f"model-{name}")
    assert any("several bases: model-a, model-b" in one for one in inspect_checkpoint(tmp_path / "served").warnings)


def test_filters_choose_layers(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_peft(tmp_path / "served" / name, peft(factors([QUERY, VALUE], seed)))
    report = inspect_checkpoint(tmp_path / "served", filters=["*q_proj*"])
    (pair,) = report.similarities
    assert pair.common_layers == 1
    assert pair.cosine == pytest.approx(pair.closest_cosine)


def test_a_folder_with_weights_of_its_own_is_a_checkpoint(tmp_path: Path) -> None:
    write_peft(tmp_path / "run", peft(factors([QUERY], 1)))
    write_peft(tmp_path / "run" / "checkpoint-10", peft(factors([QUERY], 2)))
    assert inspect_checkpoint(tmp_path / "run").kind != "adapters"


def test_values_beyond_float32_have_neither_norm_nor_cosine_and_are_said_and_drawn(tmp_path: Path) -> None:
    write_peft(tmp_path / "served" / "a", peft(factors(TARGETS, 1)))
    huge = {name: array.astype(np.float64) * 1e160 for name, array in peft(factors(TARGETS, 2)).items()}
    write_peft(tmp_path / "served" / "b", huge)
    write_peft(tmp_path / "served" / "c", peft(factors(TARGETS, 3)))
    report = inspect_checkpoint(tmp_path / "served")
    assert [adapter.norm is None for adapter in report.adapters] == [False, True, False]
    cosines = {(pair.first, pair.other): pair.cosine for pair in report.similarities}
    assert cosines["a", "b"] is cosines["b", "c"] is None
    assert cosines["a", "c"] is not None
    assert [one for one in report.warnings if one.startswith("b: values beyond the range of float32")]
    write_page(report, tmp_path / "page.html")


def test_a_comparison_tells_of_the_bytes_of_all_matrices(tmp_path: Path) -> None:
    told: list[int] = []

    class Told:
        def start(self, total_bytes: int, what: str) -> None:
            told.append(total_bytes)

        def advance(self, done_bytes: int) -> None:
            told.append(-done_bytes)

        def finish(self) -> None:
            pass

    for name in ("a", "b"):
        write_peft(tmp_path / "served" / name, peft(factors(TARGETS, 1)))
    inspect_checkpoint(tmp_path / "served", progress=Told())
    assert told[0] == 2 * sum(array.nbytes for array in factors(TARGETS, 1).values())
    assert sum(told) == 0


@pytest.mark.parametrize("option", ["spectra", "other", "step", "replicated"])
def test_what_says_nothing_of_a_folder_of_adapters_is_refused(tmp_path: Path, option: str) -> None:
    write_peft(tmp_path / "served" / "a", peft(factors([QUERY], 1)))
    value = {"spectra": True, "other": tmp_path / "served" / "a", "step": "1_1", "replicated": ["*"]}[option]
    with pytest.raises(UsageError):
        inspect_checkpoint(tmp_path / "served", **{option: value})  # type: ignore[arg-type]
