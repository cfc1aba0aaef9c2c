"""float32 inside, one rounding, the same bits whatever the threads; and the numbers of the report, computed again."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from commands import pet_merge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_cases import (
    NUMPY,
    RANK,
    Update,
    assert_all_merged,
    assert_merged,
    expected,
    factors,
    llama,
    mindpet,
    random,
    read,
    updates,
    write,
)

from ckpt_tools import merge
from surgery.errors import NonFiniteError

LARGE = (300, 2100)  # several tiles along both axes, and several bands at the smallest memory


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("base_dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_a_change_of_type_rounds_once(tmp_path: Path, base_dtype: str, dtype: str) -> None:
    base, pairs = {**llama(base_dtype), "steps": np.arange(3)}, factors()
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8, dtype=dtype)
    integers = base.pop("steps")
    merged = read(tmp_path / "out.ckpt")
    assert merged.pop("steps").tobytes() == integers.tobytes()
    for name, weight in base.items():
        if name in updates(pairs, 2.0):
            assert_merged(merged[name], dtype, weight, updates(pairs, 2.0)[name])
        else:
            assert_merged(merged[name], dtype, weight)


@pytest.mark.parametrize("base_dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("rank", [1, 8, 32, 33, 100])
def test_the_same_bytes_come_from_any_number_of_threads_any_memory_and_twice(
    tmp_path: Path, base_dtype: str, rank: int
) -> None:
    base = {"a.weight": random(0, *LARGE, dtype=base_dtype), "b.weight": random(1, 7, 5, dtype=base_dtype)}
    lora = {"a.lora_a": random(2, rank, LARGE[1]), "a.lora_b": random(3, LARGE[0], rank)}
    lora |= {"b.lora_a": random(4, rank, 5), "b.lora_b": random(5, 7, rank)}
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", lora)
    results = []
    for number, options in enumerate(
        [
            {"threads": 1},
            {"threads": 2},
            {"threads": 5},
            {"max_memory": "98MiB"},
            {"max_memory": "98MiB", "threads": 5},
            {},
        ]
    ):
        output = tmp_path / f"out{number}.ckpt"
        report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=output, alpha=rank, **options)  # type: ignore[arg-type]
        results.append((output.read_bytes(), [(w.weight_norm, w.unchanged_share) for w in report.weights]))
    assert {data for data, _ in results} == {results[0][0]}
    # The sums of squares are taken in tiles that depend on the memory; what counts elements does not.
    for _, measured in results:
        assert [share for _, share in measured] == [share for _, share in results[0][1]]
        assert [norm for norm, _ in measured] == pytest.approx([norm for norm, _ in results[0][1]], rel=1e-6)
    assert results[0] == results[1] == results[2] == results[5]


@pytest.mark.parametrize("base_dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_the_report_measures_the_change(tmp_path: Path, base_dtype: str) -> None:
    # A delta far below the weight, so that rounding to a narrow type leaves many elements as they are.
    base = {"a.weight": random(0, *LARGE, dtype=base_dtype)}
    a, b = random(1, RANK, LARGE[1], size=0.02), random(2, LARGE[0], RANK, size=0.02)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", {"a.lora_a": a, "a.lora_b": b})
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=RANK)
    before, after = base["a.weight"], read(tmp_path / "out.ckpt")["a.weight"]
    exact, _ = expected(before, Update(b, a, 1))
    delta = np.linalg.norm(exact - before.astype(np.float64))
    weight = np.linalg.norm(before.astype(np.float64))
    (folded,) = report.weights
    assert folded.weight_norm == pytest.approx(weight, rel=1e-5)
    assert folded.delta_norm == pytest.approx(delta, rel=1e-5)
    assert folded.relative_delta == pytest.approx(delta / weight, rel=1e-5)
    assert folded.unchanged_share == np.count_nonzero(before == after) / before.size
    if base_dtype == "bf16":
        assert 0.1 < folded.unchanged_share < 0.9


def test_the_unchanged_share_of_a_cast_counts_from_the_cast_weight(tmp_path: Path) -> None:
    base = {"a.weight": random(0, 64, 64)}
    a, b = random(1, RANK, 64, size=0.02), random(2, 64, RANK, size=0.02)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", {"a.lora_a": a, "a.lora_b": b})
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=4, dtype="bf16")
    before, after = base["a.weight"].astype(ml_dtypes.bfloat16), read(tmp_path / "out.ckpt")["a.weight"]
    assert report.weights[0].unchanged_share == np.count_nonzero(before == after) / before.size


def test_a_weight_of_zeros_has_no_relative_delta(tmp_path: Path) -> None:
    a, b = random(1, RANK, 8), random(2, 8, RANK)
    write(tmp_path / "base.ckpt", {"a.weight": np.zeros((8, 8), np.float32)})
    write(tmp_path / "lora.ckpt", {"a.lora_a": a, "a.lora_b": b})
    (folded,) = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=RANK).weights
    assert folded.weight_norm == 0
    assert folded.relative_delta is None
    assert folded.delta_norm == pytest.approx(np.linalg.norm(b @ a), rel=1e-5)
    assert_merged(read(tmp_path / "out.ckpt")["a.weight"], "fp32", np.zeros((8, 8), np.float32), Update(b, a, 1))


def test_an_untrained_adapter_changes_nothing_and_a_warning_says_so(tmp_path: Path) -> None:
    base, pairs = llama(), factors()
    for name in pairs:
        if name.endswith(".B"):
            pairs[name] = np.zeros_like(pairs[name])
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    assert (tmp_path / "out.ckpt").read_bytes() == (tmp_path / "base.ckpt").read_bytes()
    assert {weight.unchanged_share for weight in report.weights} == {1.0}
    assert any("the delta is zero" in warning for warning in report.warnings)


def test_a_delta_that_rounding_swallows_is_said(tmp_path: Path) -> None:
    pairs = {name: array * np.float32(1e-4) for name, array in factors().items()}
    write(tmp_path / "base.ckpt", llama())
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8)
    assert all(weight.delta_norm and weight.unchanged_share == 1.0 for weight in report.weights)
    assert any("rounding" in warning for warning in report.warnings)


def poisoned(tmp_path: Path, **places: float) -> tuple[Path, Path]:
    """A base and an adapter, with a value set in the first element of some tensors."""
    base, lora = llama("fp32"), mindpet(factors())
    for key, value in places.items():
        target, kind = key.rsplit("__", 1)
        layer = f"model.layers.{target[-1]}.attention.{target[:-1]}"
        array = base[f"{layer}.weight"] if kind == "w" else lora[f"{layer}.mindpet_delta_lora_{kind}"]
        array[0, 0] = value
    return write(tmp_path / "base.ckpt", base), write(tmp_path / "lora.ckpt", lora)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ({"wq0__w": NAN, "wv1__w": -INF}, ["model.layers.0.attention.wq.weight", "model.layers.1.attention.wv.weight"]),
        (
            {"wq0__a": NAN, "wv1__b": INF},
            ["model.layers.0.attention.wq.mindpet_delta_lora_a", "model.layers.1.attention.wv.mindpet_delta_lora_b"],
        ),
        (
            {"wq0__b": 3e38, "wv0__b": 3e38},
            ["model.layers.0.attention.wq.weight", "model.layers.0.attention.wv.weight"],
        ),
    ],
)
def test_values_that_are_not_finite_are_refused_by_name_and_nothing_is_left(
    tmp_path: Path, places: dict[str, float], named: list[str]
) -> None:
    base, lora = poisoned(tmp_path, **places)
    with pytest.raises(NonFiniteError) as caught:
        merge(base, lora, output=tmp_path / "out.ckpt", alpha=4000)
    assert len(caught.value.problems) == len(named)
    for name in named:
        assert any(name in problem.where for problem in caught.value.problems)
        assert all("--allow-nonfinite" in problem.remedy for problem in caught.value.problems)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.ckpt", "lora.ckpt"]
    report = merge(base, lora, output=tmp_path / "out.ckpt", alpha=4000, allow_nonfinite=True)
    merged = read(tmp_path / "out.ckpt")
    assert not np.all(np.isfinite(merged["model.layers.0.attention.wq.weight"]))
    assert "NaN" not in report.to_json()


@pytest.mark.parametrize("patch", [(), ("--unmerge-patch", "x.patch")])
def test_a_delta_beyond_float32_is_refused_and_numpy_says_nothing_of_it(tmp_path: Path, patch: tuple[str, ...]) -> None:
    huge = np.full((1, 1), 1e30, np.float32)  # a product of so few elements is numpy's own, which looks for overflows
    write(tmp_path / "base.ckpt", {"a.weight": huge})
    write(tmp_path / "lora.ckpt", {"a.lora_a": huge, "a.lora_b": huge})
    command = ("base.ckpt", "lora.ckpt", "--alpha", "8", "-o", "out.ckpt", *patch)
    run = pet_merge(*command, cwd=tmp_path, env={"PYTHONWARNINGS": ""})
    assert (run.returncode, run.stdout) == (5, "")
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1


def test_an_overflow_of_fp16_is_refused_in_folded_and_in_cast_weights(tmp_path: Path) -> None:
    base = llama("fp32")
    base["model.layers.0.attention.wq.weight"][0, 0] = 7e4
    base["lm_head.weight"][0, 0] = -7e4
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", mindpet(factors()))
    with pytest.raises(NonFiniteError) as caught:
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=8, dtype="fp16")
    assert sorted(problem.where for problem in caught.value.problems) == [
        "lm_head.weight",
        "model.layers.0.attention.wq.weight",
    ]
    assert "beyond the range" in caught.value.problems[0].found


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_weights_at_the_edges_of_fp16_are_rounded_right(tmp_path: Path, dtype: str) -> None:
    edges = np.array([65504, -65504, 6e-8, -6e-8, 6.1e-5, 0, -0.0, 1, 65519.9, 3e-8], np.float32)
    weight = np.tile(edges, (10, 1)).astype(NUMPY[dtype]) if dtype == "fp32" else np.tile(edges, (10, 1))
    weight = np.clip(weight.astype(np.float32), -65519.9, 65519.9).astype(NUMPY[dtype])
    weight[~np.isfinite(weight)] = 65504
    a, b = random(1, 1, 10, size=1e-7), random(2, 10, 1, size=1)
    write(tmp_path / "base.ckpt", {"a.weight": weight})
    write(tmp_path / "lora.ckpt", {"a.lora_a": a, "a.lora_b": b})
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "out.ckpt", alpha=1, dtype="fp16")
    assert_merged(read(tmp_path / "out.ckpt")["a.weight"], "fp16", weight, Update(b, a, 1))


@given(
    rows=st.integers(1, 80),
    columns=st.integers(1, 80),
    ranks=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(sorted(NUMPY)),
    adapter_dtype=st.sampled_from(sorted(NUMPY)),
    output_dtype=st.sampled_from(["keep", "bf16", "fp16", "fp32"]),
    scaling=st.floats(-4, 4).filter(lambda value: abs(value) > 1e-3),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_merge_is_within_a_rounding_of_float64(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    ranks: list[int],
    dtype: str,
    adapter_dtype: str,
    output_dtype: str,
    scaling: float,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    weight = random(seed, rows, columns, dtype=dtype)
    write(folder / "base.ckpt", {"a.weight": weight})
    terms, adapters = [], []
    for number, rank in enumerate(ranks):
        a = random(seed + 2 * number + 1, rank, columns, dtype=adapter_dtype)
        b = random(seed + 2 * number + 2, rows, rank, dtype=adapter_dtype)
        terms.append(Update(b, a, scaling / (number + 1)))
        adapters.append(write(folder / f"{number}.safetensors", {"a.lora_a": a, "a.lora_b": b}))
    scalings = [term.scaling for term in terms]
    merge(folder / "base.ckpt", *adapters, output=folder / "out.safetensors", scaling=scalings, dtype=output_dtype)
    merged = read(folder / "out.safetensors")["a.weight"]
    assert_merged(merged, dtype if output_dtype == "keep" else output_dtype, weight, *terms)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_nan_in_a_weight_that_no_adapter_touches_is_refused_by_name(dtype: str, tmp_path: Path) -> None:
    base = llama(dtype)
    name = "model.norm_out.weight"
    base[name].reshape(-1)[-1] = np.nan
    write(tmp_path / "base.safetensors", base)
    write(tmp_path / "lora.ckpt", mindpet(factors()))
    with pytest.raises(NonFiniteError) as caught:
        merge(tmp_path / "base.safetensors", tmp_path / "lora.ckpt", output=tmp_path / "out.safetensors", alpha=8)
    assert [problem.where for problem in caught.value.problems] == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "lora.ckpt"]


def test_all_other_weights_keep_their_bytes_whatever_they_are(tmp_path: Path) -> None:
    base, pairs = llama("fp32"), factors()
    base["odd"] = np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)
    base["flags"] = np.array([True, False])
    base["empty"] = np.zeros((0, 3), np.float32)
    write(tmp_path / "base.ckpt", base)
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    files = tmp_path / "base.ckpt", tmp_path / "lora.ckpt"
    merge(*files, output=tmp_path / "out.ckpt", alpha=8, allow_nonfinite=True)
    assert_all_merged(tmp_path / "out.ckpt", base, updates(pairs, 2.0))
