"""The compiled kernels give the bits that numpy gives, and measure what numpy measures."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_ways import WAYS, computed_by

from ckpt_tools.tensors import native
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.folding import DoraMerged, Folded, LowRankTerm, Merged
from ckpt_tools.tensors.lazy import Statistics
from ckpt_tools.tensors.views import Constant

FLOATS = ("fp16", "bf16", "fp32", "fp64")
COMPILED = WAYS[1:]


def constant(array: np.ndarray, dtype: str = "fp32") -> Constant:
    with np.errstate(over="ignore"):
        return Constant(array.astype(BY_NAME[dtype].numpy), BY_NAME[dtype])


def fold_of(kind: str, seed: int, rows: int, columns: int, stored: str, target: str, size: float) -> Folded:
    rng = np.random.default_rng(seed)
    weight = constant(rng.normal(0, size, (rows, columns)), stored)
    term = LowRankTerm(constant(rng.normal(size=(rows, 3))), constant(rng.normal(size=(3, columns))), 0.3 * size / 50)
    if kind == "lora":
        return Merged(weight, (term,), BY_NAME[target])
    axis = int(kind[-1])
    magnitude = constant(rng.uniform(0.5, 2, weight.shape[axis]))
    return DoraMerged(weight, term, magnitude, axis, BY_NAME[target])


def bits(array: np.ndarray) -> np.ndarray:
    """The bits, but for NaN: which NaN it is differs from one processor to another."""
    with np.errstate(invalid="ignore"):
        is_nan = np.isnan(array)
    return np.where(is_nan, -1, array.view(f"i{array.dtype.itemsize}"))


def assert_same(fold: Folded, way: str, region: tuple[tuple[int, int], ...]) -> Statistics:
    expected, found = Statistics(), Statistics()
    with np.errstate(over="ignore", invalid="ignore"):
        with computed_by("numpy"):
            wanted = fold.read(region, expected)
        with computed_by(way):
            got = fold.read(region, found)
            assert np.array_equal(bits(fold.read(region)), bits(wanted)), "without statistics"
    assert np.array_equal(bits(got), bits(wanted))
    counted = ("elements", "nonfinite_input", "nonfinite_output")
    assert [getattr(found, name) for name in counted] == [getattr(expected, name) for name in counted]
    # Whether a NaN is the same NaN differs from one processor to another, too.
    assert abs(found.unchanged - expected.unchanged) <= found.nonfinite_input
    for name in ("weight_square", "delta_square"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6, nan_ok=True)
    return found


def test_the_kernels_are_there_where_a_compiler_is() -> None:
    if shutil.which("cc") is None and not os.environ.get("CI"):  # the gate has to test them
        pytest.skip("no C compiler: the package was built without them")
    assert native.AVAILABLE


@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.parametrize("kind", ["lora", "dora 0", "dora 1"])
@pytest.mark.parametrize(("stored", "target"), list(itertools.product(FLOATS, FLOATS)))
def test_a_fold_has_the_same_bits_and_the_same_measures(way: str, kind: str, stored: str, target: str) -> None:
    # Larger than a tile and than a chunk of a row, and no multiple of either.
    fold = fold_of(kind, 0, 70, 2100, stored, target, 0.02)
    measured = assert_same(fold, way, ((0, 70), (0, 2100)))
    assert measured.elements == 70 * 2100
    assert measured.delta_square > 0
    assert measured.nonfinite_input == measured.nonfinite_output == 0


@pytest.mark.parametrize("way", COMPILED)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_slice_has_the_same_bits_and_the_same_measures(way: str, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40) | st.integers(1000, 1060))
    kind = data.draw(st.sampled_from(["lora", "dora 0", "dora 1"]))
    stored, target = data.draw(st.sampled_from(FLOATS)), data.draw(st.sampled_from(FLOATS))
    # The last two overflow in float16, and in squares of float32.
    size = data.draw(st.sampled_from([1e-8, 1.0, 3e4, 1e30]))
    fold = fold_of(kind, data.draw(st.integers(0, 99)), rows, columns, stored, target, size)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    bottom, right = data.draw(st.integers(top + 1, rows)), data.draw(st.integers(left + 1, columns))
    assert_same(fold, way, ((top, bottom), (left, right)))


@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_every_pattern_is_folded_as_numpy_folds_it(way: str, name: str) -> None:
    every = np.arange(65536, dtype=np.uint16).view(BY_NAME[name].numpy).reshape(64, 1024)
    rng = np.random.default_rng(0)
    for size in (0.0, 2.0**-20, 1.0, 60000.0):
        term = LowRankTerm(constant(rng.normal(size=(64, 2))), constant(rng.normal(size=(2, 1024))), size)
        for target in FLOATS:
            fold = Merged(Constant(every, dtype_of(every)), (term,), BY_NAME[target])
            measured = assert_same(fold, way, ((0, 64), (0, 1024)))
            assert measured.nonfinite_input == {"fp16": 2 * 1024, "bf16": 2 * 128}[name]


@pytest.mark.parametrize("way", WAYS)
def test_sums_of_squares_are_right_to_six_digits(way: str) -> None:
    fold = fold_of("lora", 1, 64, 2048, "fp32", "fp32", 0.02)
    weight = np.asarray(fold.weight.read_all(), np.float64)
    delta = fold.read_all().astype(np.float64) - weight
    measured = Statistics()
    with computed_by(way):
        fold.read(((0, 64), (0, 2048)), measured)
    assert measured.weight_square == pytest.approx(math.fsum((weight**2).ravel()), rel=1e-7)
    assert measured.delta_square == pytest.approx(math.fsum((delta**2).ravel()), rel=1e-4)  # a difference, rounded


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_library_that_does_not_load_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(native, "_LIBRARY", tmp_path / "_native.so")
    assert native._load() is None
    (tmp_path / "_native.so").write_bytes(content)
    assert native._load() is None


def test_a_library_of_another_revision_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_REVISION", 0)
    assert native._load() is None
