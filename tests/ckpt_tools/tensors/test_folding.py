"""Folds against float64, within the sums of float32 and one rounding; and what they measure, computed again."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import regions, sliced, stored
from merge_cases import Update, assert_merged

from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.folding import Added, DoraMerged, Folded, LowRankTerm, Merged, VectorTerm
from ckpt_tools.tensors.lazy import LazyTensor, Statistics, bands
from ckpt_tools.tensors.views import Cast, Constant, Transposed

DTYPES = ("fp16", "bf16", "fp32", "fp64")


def random(seed: int, *shape: int, dtype: str = "fp32", size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, shape).astype(BY_NAME[dtype].numpy)


def lazy(array: np.ndarray) -> Constant:
    return Constant(array, dtype_of(array))


def lazy_terms(updates: Sequence[Update]) -> tuple[LowRankTerm, ...]:
    return tuple(LowRankTerm(lazy(update.left), lazy(update.right), update.scaling) for update in updates)


def measured(tensor: LazyTensor) -> Statistics:
    statistics = Statistics()
    tensor.read(tuple((0, size) for size in tensor.shape), statistics)
    return statistics


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 70), (33, 2050)])
def test_a_merge_is_within_one_rounding_of_float64(dtype: str, target: str, shape: tuple[int, int]) -> None:
    weight = random(0, *shape, dtype=dtype)
    terms = [Update(random(1, shape[0], 5), random(2, 5, shape[1]), 0.25)]
    merged = Merged(lazy(weight), lazy_terms(terms), BY_NAME[target])
    assert_merged(merged.read_all(), target, weight, *terms)


@pytest.mark.parametrize("factor_dtype", DTYPES)
def test_several_terms_are_summed_before_the_rounding(factor_dtype: str) -> None:
    weight = random(0, 20, 30, dtype="bf16")
    terms = [
        Update(random(n, 20, rank, dtype=factor_dtype), random(n + 9, rank, 30, dtype=factor_dtype), 0.5 - n)
        for n, rank in enumerate((1, 4, 40))
    ]
    assert_merged(Merged(lazy(weight), lazy_terms(terms), BY_NAME["bf16"]).read_all(), "bf16", weight, *terms)


def test_a_float64_base_is_rounded_once_to_bfloat16() -> None:
    weight = np.full((2, 2), 1 + 2.0**-8 + 2.0**-40)
    nothing = Update(np.zeros((2, 1)), np.zeros((1, 2)), 1.0)
    merged = Merged(lazy(weight), lazy_terms([nothing]), BY_NAME["bf16"]).read_all()
    assert merged.astype(np.float64).tolist() == [[1 + 2.0**-7] * 2] * 2


def test_transposed_factors_fold_as_their_transposes_do() -> None:
    weight, a, b = random(0, 40, 50), random(1, 4, 40), random(2, 50, 4)
    term = LowRankTerm(Transposed(lazy(a)), Transposed(lazy(b)), 2.0)
    assert_merged(
        Merged(lazy(weight), (term,), BY_NAME["fp32"]).read_all(), "fp32", weight, Update(a.T.copy(), b.T.copy(), 2.0)
    )


def test_each_matrix_of_a_stack_has_factors_of_its_own() -> None:
    weight, left, right = random(0, 3, 20, 30, dtype="fp16"), random(1, 3, 20, 4), random(2, 3, 4, 30)
    merged = Merged(lazy(weight), (LowRankTerm(lazy(left), lazy(right), 0.5),), BY_NAME["fp16"]).read_all()
    for expert in range(3):
        assert_merged(merged[expert], "fp16", weight[expert], Update(left[expert], right[expert], 0.5))


def test_a_fold_leaves_what_it_reads_as_it_is(tmp_path: Path) -> None:
    arrays = [random(n, *shape) for n, shape in enumerate([(8, 9), (8, 2), (2, 9), (8,)])]
    weight, left, right, magnitude = map(lazy, arrays)
    before = [array.tobytes() for array in arrays]
    term = LowRankTerm(left, right, 3.0)
    folds: list[Folded] = [
        Merged(weight, (term,), BY_NAME["fp32"]),
        Merged(Cast(weight, BY_NAME["fp32"]), (term,), BY_NAME["fp32"]),
        DoraMerged(weight, term, magnitude, 0, BY_NAME["fp32"]),
        Added(magnitude, (VectorTerm(magnitude, 1.0),), BY_NAME["fp32"]),
    ]
    for fold in folds:
        assert fold.read_all().tobytes() == fold.read_all().tobytes()
        measured(fold)
    assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 5), (150, 70)])
def test_dora_gives_each_output_feature_its_magnitude(axis: int, dtype: str, shape: tuple[int, int]) -> None:
    weight, left, right = random(0, *shape, dtype=dtype), random(1, shape[0], 3), random(2, 3, shape[1])
    magnitude = np.abs(random(3, shape[axis])) + 1
    term = LowRankTerm(lazy(left), lazy(right), 0.5)
    merged = DoraMerged(lazy(weight), term, lazy(magnitude), axis, BY_NAME["fp64"]).read_all()
    plain = weight.astype(np.float64) + 0.5 * (left.astype(np.float64) @ right.astype(np.float64))
    norms = np.sqrt(np.square(plain).sum(1 - axis, keepdims=True))
    expected = plain / norms * (magnitude[:, None] if axis == 0 else magnitude)
    assert np.allclose(merged, expected, rtol=1e-5, atol=1e-6)
    assert np.allclose(np.linalg.norm(merged, axis=1 - axis), magnitude, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 1)])
def test_doras_magnitudes_may_have_axes_of_one(shape: tuple[int, ...]) -> None:
    weight, left, right, magnitude = random(0, 4, 5), random(1, 4, 2), random(2, 2, 5), random(3, 4)
    term = LowRankTerm(lazy(left), lazy(right), 0.5)
    folds = [DoraMerged(lazy(weight), term, lazy(m), 0, BY_NAME["fp32"]) for m in (magnitude, magnitude.reshape(shape))]
    assert folds[0].read_all().tobytes() == folds[1].read_all().tobytes()


def test_a_feature_of_norm_zero_is_told_as_not_finite_and_disturbs_no_other() -> None:
    weight = random(0, 4, 5)
    weight[2] = 0
    left, right = random(1, 4, 2), random(2, 2, 5)
    left[2] = 0
    fold = DoraMerged(
        lazy(weight), LowRankTerm(lazy(left), lazy(right), 1.0), lazy(np.ones(4, np.float32)), 0, BY_NAME["fp32"]
    )
    with np.errstate(invalid="ignore"):
        statistics = measured(fold)
        finite = np.isfinite(fold.read_all()).all(axis=1)
    assert (statistics.nonfinite_input, statistics.nonfinite_output) == (0, 5)
    assert finite.tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4)])
def test_vectors_are_added(dtype: str, target: str, shape: tuple[int, ...]) -> None:
    weight, first, second = np.asarray(random(0, *shape, dtype=dtype)), random(1, *shape), random(2, *shape)
    weight = weight.reshape(shape)
    terms = tuple(VectorTerm(lazy(np.asarray(v).reshape(shape)), s) for v, s in ((first, 0.5), (second, -2.0)))
    found = Added(lazy(weight), terms, BY_NAME[target]).read_all()
    expected = weight.astype(np.float64) + 0.5 * first - 2.0 * second
    assert found.dtype == BY_NAME[target].numpy
    assert found.shape == shape
    tolerance = {"fp16": 1e-3, "bf16": 8e-3}.get(target, 1e-6)
    assert np.allclose(found.astype(np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_what_is_measured_is_what_numpy_finds(dtype: str, target: str) -> None:
    weight, left, right = random(0, 70, 90, dtype=dtype), random(1, 70, 3, size=0.05), random(2, 3, 90, size=0.05)
    fold = Merged(lazy(weight), (LowRankTerm(lazy(left), lazy(right), 2.0),), BY_NAME[target])
    statistics = measured(fold)
    delta = 2.0 * (left.astype(np.float64) @ right.astype(np.float64))
    with np.errstate(over="ignore"):
        before = weight.astype(BY_NAME[target].numpy)
    assert statistics.elements == weight.size
    assert np.isclose(statistics.weight_square, np.square(weight.astype(np.float64)).sum(), rtol=1e-5)
    assert np.isclose(statistics.delta_square, np.square(delta).sum(), rtol=1e-5)
    assert statistics.unchanged == np.count_nonzero(before == fold.read_all())
    assert (statistics.nonfinite_input, statistics.nonfinite_output) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_measured_in_bands_adds_up_to_the_whole(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(70, 40), (2, 40, 30), (300, 3)]))
    *stack, rows, columns = shape
    term = LowRankTerm(lazy(random(1, *stack, rows, 3)), lazy(random(2, *stack, 3, columns)), 0.01)
    fold = Merged(lazy(random(0, *shape, dtype="bf16")), (term,), BY_NAME["bf16"])
    whole, sums = measured(fold), Statistics()
    pieces = []
    for region in bands(shape, data.draw(st.integers(1, 4000))):
        part = Statistics()
        pieces.append(fold.read(region, part).reshape(-1))
        sums.add(part)
    assert np.concatenate(pieces).tobytes() == fold.read_all().tobytes()
    assert (sums.elements, sums.unchanged) == (whole.elements, whole.unchanged)
    assert np.isclose(sums.weight_square, whole.weight_square, rtol=1e-5)
    assert np.isclose(sums.delta_square, whole.delta_square, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_what_is_not_finite_is_counted_before_and_behind(dtype: str, target: str) -> None:
    weight = random(0, 40, 50, dtype=dtype)
    weight[3, 4], weight[35, 49] = np.nan, np.inf
    fold = Merged(lazy(weight), (LowRankTerm(lazy(random(1, 40, 2)), lazy(random(2, 2, 50)), 1.0),), BY_NAME[target])
    statistics = measured(fold)
    assert (statistics.nonfinite_input, statistics.nonfinite_output) == (2, 2)


def test_an_overflow_of_the_output_type_is_counted_behind_alone() -> None:
    weight = np.full((2, 3), 65000, np.float16)
    left, right = np.full((2, 1), 1000, np.float32), np.array([[1, 0, 0]], np.float32)
    statistics = measured(Merged(lazy(weight), (LowRankTerm(lazy(left), lazy(right), 1.0),), BY_NAME["fp16"]))
    assert (statistics.nonfinite_input, statistics.nonfinite_output) == (0, 2)


def test_squares_that_float32_cannot_hold_are_measured() -> None:
    weight = np.full((4, 4), 1e30, np.float32)
    zero = LowRankTerm(lazy(np.zeros((4, 1), np.float32)), lazy(np.zeros((1, 4), np.float32)), 1.0)
    statistics = measured(Merged(lazy(weight), (zero,), BY_NAME["fp32"]))
    assert np.isclose(statistics.weight_square, 16e60, rtol=1e-6)
    assert (statistics.delta_square, statistics.unchanged, statistics.nonfinite_input) == (0.0, 16, 0)


def test_another_type_of_the_result_is_another_single_rounding() -> None:
    weight = random(0, 8, 9)
    term = LowRankTerm(lazy(random(1, 8, 2)), lazy(random(2, 2, 9)), 1.0)
    folds: list[Folded] = [
        Merged(lazy(weight), (term,), BY_NAME["bf16"]),
        DoraMerged(lazy(weight), term, lazy(random(3, 8)), 0, BY_NAME["bf16"]),
        Added(lazy(weight), (VectorTerm(lazy(weight), 0.1),), BY_NAME["bf16"]),
    ]
    for fold in folds:
        exact = fold.with_dtype(BY_NAME["fp32"]).read_all()
        assert fold.with_dtype(BY_NAME["fp16"]).read_all().tobytes() == exact.astype(np.float16).tobytes()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_slice_of_added_vectors_is_the_slice_of_the_sum(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(50,), (5, 6), (2, 3, 4)]))
    fold = Added(lazy(random(0, *shape)), (VectorTerm(lazy(random(1, *shape)), 0.3),), BY_NAME["bf16"])
    region = data.draw(regions(shape))
    assert fold.read(region).tobytes() == sliced(fold.read_all(), region).tobytes()


def test_a_pickled_fold_has_the_same_bits_and_the_same_print(tmp_path: Path) -> None:
    weight, left, right = (
        stored(tmp_path / str(n), random(n, *shape)) for n, shape in enumerate([(8, 9), (8, 2), (2, 9)])
    )
    term = LowRankTerm(left, right, 1 / 3)
    magnitude = lazy(np.ones(8, np.float32))
    folds: list[Folded] = [
        Merged(weight, (term,), BY_NAME["fp16"]),
        DoraMerged(weight, term, magnitude, 0, BY_NAME["fp16"]),
        Added(weight, (VectorTerm(weight, 0.5),), BY_NAME["fp16"]),
    ]
    for fold in folds:
        first = fold.read_all().tobytes()
        copy = pickle.loads(pickle.dumps(fold))
        assert copy.read_all().tobytes() == first
        assert repr(copy) == repr(fold)


def test_what_a_fold_reads_is_known_before_it_is_read(tmp_path: Path) -> None:
    weight, left, right, magnitude = (
        stored(tmp_path / str(n), random(n, *shape)) for n, shape in enumerate([(8, 9), (8, 2), (2, 9), (8,)])
    )
    fold = DoraMerged(weight, LowRankTerm(left, right, 1.0), magnitude, 0, BY_NAME["fp32"])
    assert set(fold.sources()) == {*weight.runs, *left.runs, *right.runs, *magnitude.runs}
    assert fold.byte_runs() is None
    added = Added(magnitude, (VectorTerm(magnitude, 1.0),), BY_NAME["fp32"])
    assert set(added.sources()) == set(magnitude.runs)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 3, 4)])
def test_a_weight_without_elements_stays_empty(shape: tuple[int, ...]) -> None:
    *stack, rows, columns = shape
    term = LowRankTerm(lazy(random(1, *stack, rows, 2)), lazy(random(2, *stack, 2, columns)), 1.0)
    assert Merged(lazy(random(0, *shape)), (term,), BY_NAME["fp32"]).read_all().shape == shape


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_a_slice_with_nan_has_the_bits_of_the_whole(dtype: str) -> None:
    bits = np.dtype(f"u{BY_NAME[dtype].itemsize}")
    anything = np.random.default_rng(0).integers(0, np.iinfo(bits).max, (64, 70), dtype=bits, endpoint=True)
    left, right = (Constant(np.ones(shape, np.float32), BY_NAME["fp32"]) for shape in ((64, 1), (1, 70)))
    weight = Constant(anything.view(BY_NAME[dtype].numpy), BY_NAME[dtype])
    merged = Merged(weight, (LowRankTerm(left, right, 1.0),), BY_NAME[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        whole = merged.read_all().view(bits)
        for start in range(66):
            part = merged.read(((0, 64), (start, start + 4))).view(bits)
            assert np.array_equal(part, whole[:, start : start + 4])
