"""Layers of every kind by every method, against the definitions on whole updates in float64."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.combining import Combination, Layer, Part, combine_layers, layer_problems
from ckpt_tools.combining.foretold import working_bytes
from ckpt_tools.combining.layers import Combined
from ckpt_tools.progress import SILENT
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import ByteRun, Stored
from ckpt_tools.tensors.sources import open_source
from ckpt_tools.tensors.views import Constant
from ckpt_tools.writing.memory import Budget, make_budget
from surgery.combining import METHODS
from surgery.draws import uniform_draws
from surgery.errors import InputChangedError, NonFiniteError, ResourceError

FP32 = BY_NAME["fp32"]
WEIGHTS, SCALINGS = (0.7, -0.4, 1.5), (2.0, 1.0, 0.5)
DENSITY, SEED = 0.5, 9
EXPERTS = 3

SHAPES = {"linear": (40, 24), "embedding": (24, 60), "conv": (20, 6, 3, 3), "expert": (EXPERTS, 24, 40)}


def _layer(kind: str, ranks: Sequence[int], shape: tuple[int, ...] | None = None, name: str = "x.y") -> Layer:
    generator = np.random.default_rng(1)
    shape = shape or SHAPES[kind]
    parts = []
    for number, rank in enumerate(ranks):
        if kind == "expert":
            a, b = (shape[0], shape[1], rank), (shape[0], rank, shape[2])
        else:
            a, b = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
        arrays = [generator.normal(0, 0.1, size).astype(np.float32) for size in (a, b)]
        tensors = [Constant(array, FP32) for array in arrays]
        parts.append(Part(number, tensors[0], tensors[1], WEIGHTS[number], SCALINGS[number], rank))
    return Layer(name, kind, tuple(parts), name)


def _how(method: str, **options: object) -> Combination:
    known = METHODS[method]
    density = DENSITY if known.prune else None
    seed = SEED if known.prune == "random" else None
    return Combination.of(method, density, None, seed, options.get("rank"), options.get("energy"))  # type: ignore[arg-type]


def _combined(layer: Layer, how: Combination, folder: Path, threads: int = 1, dtype: str = "fp32") -> Combined:
    budget = make_budget(threads)
    return combine_layers([layer], how, BY_NAME[dtype], folder, budget, SILENT)[layer.name]


def _matrices(kind: str, a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Left and right factors of each matrix, float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if kind == "expert":
        return list(zip(a, b, strict=True))
    return [(b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1))]


def _pruned(values: np.ndarray, prune: str, stream: str) -> np.ndarray:
    if prune == "magnitude":
        kept = np.argsort(-np.abs(values).reshape(-1), kind="stable")[: int(DENSITY * values.size)]
        mask = np.zeros(values.size, bool)
        mask[kept] = True
        return np.where(mask.reshape(values.shape), values, 0)
    if prune == "random":
        draws = uniform_draws(SEED, stream, 0, values.size).reshape(values.shape)
        return np.where(draws < DENSITY, values / DENSITY, 0)
    return values


def _together(tasks: list[np.ndarray], weights: Sequence[float], elects: bool) -> np.ndarray:
    stacked = np.stack(tasks)
    weighed = stacked * np.reshape(weights, (-1, *(1 for _ in stacked.shape[1:])))
    if not elects:
        return weighed.sum(axis=0)
    agree = np.sign(stacked) == np.where(stacked.sum(axis=0) >= 0, 1, -1)
    return (weighed * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def _expected(layer: Layer, method: str) -> list[np.ndarray]:
    """What a method gives before it is cut to a rank, by its definition, of each matrix."""
    known, results = METHODS[method], []
    stacks = [_matrices(layer.kind, part.a.read_all(), part.b.read_all()) for part in layer.parts]
    for number, pairs in enumerate(zip(*stacks, strict=True)):
        streams = [f"{layer.stream} {part.adapter} {number}" for part in layer.parts]
        count = len(layer.parts)
        if known.of == "factors":
            roots = [np.sqrt(abs(w * s)) for w, s in zip(WEIGHTS[:count], SCALINGS[:count], strict=True)]
            signs = [np.sign(w * s) for w, s in zip(WEIGHTS[:count], SCALINGS[:count], strict=True)]
            rights = [_pruned(right, known.prune, f"{s} A") for (_, right), s in zip(pairs, streams, strict=True)]
            lefts = [_pruned(left, known.prune, f"{s} B") for (left, _), s in zip(pairs, streams, strict=True)]
            right = _together(rights, [r * s for r, s in zip(roots, signs, strict=True)], known.elects)
            results.append(_together(lefts, roots, known.elects) @ right)
            continue
        deltas = [scaling * left @ right for (left, right), scaling in zip(pairs, SCALINGS, strict=False)]
        # What is drawn lies so that there are no more columns than rows.
        turned = [delta if delta.shape[0] >= delta.shape[1] else delta.T for delta in deltas]
        pruned = [_pruned(delta, known.prune, stream) for delta, stream in zip(turned, streams, strict=True)]
        whole = _together(pruned, WEIGHTS[:count], known.elects)
        results.append(
            whole if deltas[0].shape == whole.shape and deltas[0].shape[0] >= deltas[0].shape[1] else whole.T
        )
    return results


def _best(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vt[:rank]


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_gives_what_its_definition_says(tmp_path: Path, kind: str, method: str) -> None:
    ranks = (4, 4, 4) if METHODS[method].of == "factors" else (2, 5, 3)
    layer = _layer(kind, ranks)
    found = _combined(layer, _how(method), tmp_path)
    matrices = _matrices(kind, found.a.read_all(), found.b.read_all())
    expected = _expected(layer, method)
    assert len(matrices) == len(expected) == (EXPERTS if kind == "expert" else 1)
    for (left, right), whole in zip(matrices, expected, strict=True):
        wanted = _best(whole, max(ranks)) if METHODS[method].of == "delta" else whole
        np.testing.assert_allclose(left @ right, wanted, atol=2e-5 * np.linalg.norm(wanted))
    report = found.report
    assert report.ranks == ranks
    assert report.rank == {"cat": sum(ranks), "factors": 4, "delta": 5}[METHODS[method].of]
    assert report.norm == pytest.approx(np.sqrt(sum(np.sum(whole**2) for whole in expected)), rel=1e-5)
    lost = np.sqrt(sum(np.sum((left @ right - w) ** 2) for (left, right), w in zip(matrices, expected, strict=True)))
    assert report.relative_error == pytest.approx(lost / report.norm, rel=1e-4, abs=1e-6)
    sums = _expected(layer, "cat")
    away = np.sqrt(sum(np.sum((left @ right - s) ** 2) for (left, right), s in zip(matrices, sums, strict=True)))
    size = np.sqrt(sum(np.sum(one**2) for one in sums))
    assert report.distance_from_sum == pytest.approx(away / size, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["cat", "linear", "ties_svd"])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_shapes_are_those_of_the_kind(tmp_path: Path, kind: str, method: str) -> None:
    layer = _layer(kind, (3, 3))
    found = _combined(layer, _how(method, rank=2), tmp_path)
    first = layer.parts[0]
    axis = 2 if kind == "expert" else 0
    assert found.a.shape == tuple(2 if i == axis else size for i, size in enumerate(first.a.shape))
    assert found.b.shape == tuple(2 if i == 1 else size for i, size in enumerate(first.b.shape))


def test_a_rank_above_the_width_is_padded_with_finite_directions(tmp_path: Path) -> None:
    found = _combined(_layer("linear", (1,), shape=(5, 1)), _how("cat", rank=3), tmp_path)
    a, b = found.a.read_all(), found.b.read_all()
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(b[:, 1:], 0)


def test_a_lower_rank_is_the_best_of_that_rank_and_a_higher_one_changes_nothing(tmp_path: Path) -> None:
    layer = _layer("linear", (6,))
    (whole,) = _expected(layer, "cat")
    for rank in (1, 3, 6, 11, 24, 30):
        (tmp_path / str(rank)).mkdir()
        found = _combined(layer, _how("cat", rank=rank), tmp_path / str(rank))
        left, right = found.b.read_all(), found.a.read_all()
        assert found.report.rank == left.shape[1] == rank
        np.testing.assert_allclose(left @ right, _best(whole, rank), atol=1e-6)
        if rank > 6:  # directions that A does not have, for more training, and zeros in B
            np.testing.assert_array_equal(left[:, 6:], 0)
            if rank <= right.shape[1]:
                np.testing.assert_allclose(right @ right.T, np.eye(rank), atol=1e-5)


@pytest.mark.parametrize("method", ["cat", "svd", "magnitude_prune_svd", "linear"])
@pytest.mark.parametrize("energy", [0.5, 0.95, 1.0])
def test_an_energy_keeps_the_least_rank_that_has_it(tmp_path: Path, method: str, energy: float) -> None:
    layer = _layer("linear", (5, 5))
    (whole,) = _expected(layer, method)
    squares = np.linalg.svd(whole, compute_uv=False) ** 2
    squares = squares[squares > 1e-10 * squares[0]]
    wanted = int(np.searchsorted(np.cumsum(squares), energy * np.sum(squares) * (1 - 1e-9))) + 1
    report = _combined(layer, _how(method, energy=energy), tmp_path).report
    assert report.rank == wanted
    assert report.energy >= energy * (1 - 1e-6)
    assert 1 - report.energy == pytest.approx(report.relative_error**2, abs=1e-6)


@pytest.mark.parametrize("method", list(METHODS))
def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path, method: str) -> None:
    layers = [_layer("linear", (4, 4), shape=(130 + 7 * n, 90), name=f"layers.{n}") for n in range(6)]
    bits = []
    for threads in (1, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        done = combine_layers(layers, _how(method), FP32, folder, make_budget(threads), SILENT)
        bits.append([(one.a.read_all().tobytes(), one.b.read_all().tobytes()) for one in done.values()])
    assert bits[0] == bits[1]


def test_a_type_of_less_precision_is_in_the_error(tmp_path: Path) -> None:
    layer = _layer("linear", (4, 4))
    exact = _combined(layer, _how("cat"), tmp_path).report
    (tmp_path / "bf16").mkdir()
    found = _combined(layer, _how("cat"), tmp_path / "bf16", dtype="bf16")
    assert found.a.dtype.name == "bf16"
    assert exact.relative_error < 1e-6 < 1e-4 < found.report.relative_error < 1e-2


def test_a_whole_update_is_never_in_memory(tmp_path: Path) -> None:
    shape = (6000, 3000)  # 72 MB of float32
    layer, how = _layer("linear", (4, 4), shape=shape), _how("ties_svd")
    tracemalloc.start()
    try:
        _combined(layer, how, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.75 * 4 * shape[0] * shape[1]
    assert peak < working_bytes([layer], how)


@pytest.mark.parametrize("method", ["cat", "svd", "linear", "dare_ties"])
def test_narrow_work_takes_no_more_memory_than_is_predicted(tmp_path: Path, method: str) -> None:
    layer, how = _layer("linear", (8, 8), shape=(20_000, 12_000)), _how(method, rank=8)
    tracemalloc.start()
    try:
        _combined(layer, how, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < working_bytes([layer], how)


def test_too_little_memory_for_a_layer_is_said_beforehand(tmp_path: Path) -> None:
    layer = _layer("linear", (8, 8), shape=(40_000, 30_000))
    limit = 128 * 2**20
    budget = make_budget(2, limit)
    with pytest.raises(ResourceError, match="for the largest layer"):
        combine_layers([layer], _how("svd"), FP32, tmp_path, budget, SILENT, max_memory=limit)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    layer = _layer("linear", (2, 2))
    broken = np.array(layer.parts[0].a.read_all())
    broken[0, 0] = np.nan
    parts = (Part(0, Constant(broken, FP32), layer.parts[0].b, 1.0, 1.0, 2), layer.parts[1])
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        _combined(Layer("x", "linear", parts, "x"), _how("svd"), tmp_path)
    huge = Part(0, layer.parts[0].a, layer.parts[0].b, 1e8, 1.0, 2)
    with pytest.raises(NonFiniteError, match="beyond the range of fp16"):
        _combined(Layer("x", "linear", (huge,), "x"), _how("cat"), tmp_path, dtype="fp16")


def test_methods_on_factors_want_one_rank_and_all_want_one_shape() -> None:
    unlike = _layer("linear", (2, 3))
    (problem,) = layer_problems([unlike], _how("ties"))
    assert "ranks 2, 3" in problem.found
    assert "cat or ties_svd" in problem.remedy
    assert layer_problems([unlike], _how("ties_svd")) == []
    other = Layer("x", "linear", (unlike.parts[0], _layer("linear", (2,), shape=(40, 25)).parts[0]), "x")
    (problem,) = layer_problems([other], _how("cat"))
    assert "(40, 24), (40, 25)" in problem.found


def test_no_layers_take_no_memory() -> None:
    assert working_bytes([], _how("cat")) == 0
    assert Budget(0).peak_bytes < make_budget(1).peak_bytes


def test_an_adapter_that_is_written_to_meanwhile_is_noticed(tmp_path: Path) -> None:
    """What was combined lies in files of its own by then, so that the writer has no reason to look."""
    path = tmp_path / "adapter"
    path.write_bytes(np.ones(2 * 24 + 40 * 2, np.float32).tobytes())
    source = open_source(path)
    a = Stored(FP32, (2, 24), (ByteRun(source, 0, 2 * 24 * 4),))
    b = Stored(FP32, (40, 2), (ByteRun(source, 2 * 24 * 4, 40 * 2 * 4),))

    class Writing:
        """Progress that writes to the adapter once it was read."""

        def start(self, total_bytes: int, what: str) -> None:
            pass

        def advance(self, done_bytes: int) -> None:
            with path.open("r+b") as file:
                file.write(b"1234")
            os.utime(path, ns=(source.mtime_ns + 10**9, source.mtime_ns + 10**9))

        def finish(self) -> None:
            pass

    layer = Layer("x", "linear", (Part(0, a, b, 1.0, 1.0, 2),), "x")
    folder = tmp_path / "scratch"
    folder.mkdir()
    with pytest.raises(InputChangedError):
        combine_layers([layer], _how("svd"), FP32, folder, make_budget(1), Writing())
