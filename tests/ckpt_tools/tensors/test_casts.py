"""Casts give the bits that numpy and ml_dtypes give, or where those round twice, the bits of one rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_ways import WAYS, computed_by

from ckpt_tools.tensors.casts import cast_array, count_nonfinite, narrow, widen
from ckpt_tools.tensors.dtypes import BY_NAME

FLOATS = ("fp16", "bf16", "fp32", "fp64")
FRACTION_BITS = {"fp16": 10, "bf16": 7}
SMALLEST_EXPONENT = {"fp16": -14, "bf16": -126}
LARGEST_EXPONENT = {"fp16": 15, "bf16": 127}


@pytest.fixture(scope="module", autouse=True, params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    with computed_by(request.param):
        yield


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


def singles(pattern: np.ndarray) -> np.ndarray:
    return pattern.astype(np.uint32).view(np.float32)


def assert_same_floats(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, but for NaN: which NaN it is differs from one processor to another."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), is_nan)
    assert np.array_equal(bits(found)[~is_nan], bits(expected)[~is_nan])


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("target", ["fp32", "fp64"])
def test_all_16_bit_patterns_are_widened_exactly(name: str, target: str) -> None:
    every = np.arange(65536, dtype=np.uint16).view(BY_NAME[name].numpy)
    with np.errstate(invalid="ignore"):
        assert_same_floats(cast_array(every, BY_NAME[target]), every.astype(BY_NAME[target].numpy))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_a_slice_has_the_bits_of_the_whole_which_nan_it_may_be(name: str, target: str) -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    wide = {2: patterns, 4: patterns.astype(np.uint32) << 16 | 1, 8: patterns.astype(np.uint64) << 48 | 1}
    values = wide[BY_NAME[name].numpy.itemsize].view(BY_NAME[name].numpy)
    with np.errstate(invalid="ignore"):
        whole = bits(cast_array(values, BY_NAME[target]))
        for start in range(0, values.size, 509):
            for length in (1, 7, 1023):
                part = bits(cast_array(values[start : start + length], BY_NAME[target]))
                assert np.array_equal(part, whole[start : start + length])


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_value_that_is_not_finite_does_not_disturb_the_others(special: float) -> None:
    halves = np.array([1.5, special, -6e-8, 65504], np.float16)
    assert_same_floats(widen(halves), np.array([1.5, special, float(halves[2]), 65504], np.float32))


def test_singles_around_every_half_and_every_tie_round_as_numpy_does() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[1:] + halves[:-1]) / 2
    edges = np.concatenate([halves, ties, np.float32([65519.996, 65520, 65536, 1e30])])
    around = np.concatenate([edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(-np.inf))])
    with np.errstate(over="ignore"):
        for values in (around, -around):
            assert_same_floats(cast_array(values, BY_NAME["fp16"]), values.astype(np.float16))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 2**32), (0x38800000, 0x477FF000), (0x33000000, 0x38800000), (0, 0x33000000), (0x477FE000, 0x7F800001)],
    ids=["all", "normal halves", "subnormal halves", "below the smallest half", "overflow"],
)
@pytest.mark.parametrize("specials", [0.0, 0.1, 0.9])
def test_random_singles_round_to_half_as_numpy_does(low: int, high: int, specials: float) -> None:
    rng = np.random.default_rng(low + int(10 * specials))
    pattern = rng.integers(low, high, 200_000, np.int64)
    pattern[: pattern.size // 2] |= 0x1000  # many ties, and what is near them
    pattern[: pattern.size // 4] &= ~np.int64(0xFFF)
    others = rng.integers(0x477FF000, 2**31, pattern.size, np.int64)
    pattern = np.where(rng.random(pattern.size) < specials, others, pattern)
    pattern ^= rng.integers(0, 2, pattern.size, np.int64) << 31
    values = singles(pattern)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same_floats(cast_array(values, BY_NAME["fp16"]), values.astype(np.float16))


def test_singles_round_to_bfloat16_as_ml_dtypes_rounds_them() -> None:
    pattern = np.random.default_rng(0).integers(0, 2**32, 300_000, np.int64)
    pattern[::3] &= ~np.int64(0x7FFF)
    values = singles(pattern)
    with np.errstate(invalid="ignore"):
        assert_same_floats(cast_array(values, BY_NAME["bf16"]), values.astype(ml_dtypes.bfloat16))


def rounded_once(value: float, name: str) -> float:
    """To the nearest multiple of the unit in the last place, ties to even, in exact arithmetic."""
    if not math.isfinite(value) or value == 0:
        return value
    exponent = max(math.frexp(value)[1] - 1, SMALLEST_EXPONENT[name])
    unit = Fraction(2) ** (exponent - FRACTION_BITS[name])
    result = round(Fraction(value) / unit) * unit  # round() takes ties to even
    largest = (2 - Fraction(2) ** -FRACTION_BITS[name]) * Fraction(2) ** LARGEST_EXPONENT[name]
    return math.copysign(math.inf if abs(result) > largest else float(abs(result)), value)


@st.composite
def doubles_that_trap_two_roundings(draw: st.DrawFn, name: str) -> float:
    """A tie between two neighbours, moved by far less than float32 can hold."""
    exponent = draw(st.integers(SMALLEST_EXPONENT[name] - FRACTION_BITS[name] - 3, LARGEST_EXPONENT[name]))
    fraction = draw(st.integers(0, 2 ** FRACTION_BITS[name] - 1)) + 0.5
    value = math.ldexp(1 + fraction * 2.0 ** -FRACTION_BITS[name], exponent)
    nudge = draw(st.sampled_from([0.0, 2.0**-30, -(2.0**-30), 2.0**-44, -(2.0**-44)]))
    return draw(st.sampled_from([1.0, -1.0])) * value * (1 + nudge)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("by", ["cast_array", "narrow"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_doubles_are_rounded_once(name: str, by: str, data: st.DataObject) -> None:
    element = st.one_of(doubles_that_trap_two_roundings(name), st.floats())
    values = np.array(data.draw(st.lists(element, min_size=1, max_size=20)), np.float64)
    found = np.empty(values.shape, BY_NAME[name].numpy)
    if by == "narrow":
        narrow(values, found)
    else:
        found = cast_array(values, BY_NAME[name])
    expected = np.array([rounded_once(value, name) for value in values.tolist()])
    assert_same_floats(found.astype(np.float64), expected)


def test_the_trap_of_two_roundings_is_one() -> None:
    value = 1 + 2.0**-8 + 2.0**-40
    assert float(np.float64(value).astype(np.float32).astype(ml_dtypes.bfloat16)) == 1.0
    assert float(cast_array(np.array([value]), BY_NAME["bf16"])[0]) == 1 + 2.0**-7


def test_doubles_round_to_singles_as_numpy_does() -> None:
    values = np.random.default_rng(0).integers(0, 2**63, 10_000).view(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same_floats(cast_array(values, BY_NAME["fp32"]), values.astype(np.float32))


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3)])
def test_any_shape_is_cast_to_any_type(source: str, target: str, shape: tuple[int, ...]) -> None:
    values = (np.arange(math.prod(shape)) / 8 - 0.5).reshape(shape).astype(BY_NAME[source].numpy)
    before = values.tobytes()
    result = cast_array(values, BY_NAME[target])
    assert result.dtype == BY_NAME[target].numpy
    assert result.shape == shape
    assert np.array_equal(result.astype(np.float64), values.astype(np.float64))
    assert values.tobytes() == before


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_strided_values_are_cast_as_packed_ones(source: str, target: str) -> None:
    values = np.random.default_rng(0).normal(0, 10, (12, 10)).astype(BY_NAME[source].numpy)
    for view in (values.T, values[::2, 1::3], values[::-1]):
        expected = cast_array(view.copy(), BY_NAME[target])
        assert np.array_equal(bits(cast_array(view, BY_NAME[target])), bits(expected))
        room = np.zeros((2 * view.shape[0], 3 * view.shape[1]), BY_NAME[target].numpy)
        if source == "fp32" or source == target:
            narrow(view, room[1::2, ::3])
            assert np.array_equal(bits(room[1::2, ::3].copy()), bits(expected))
            assert not room[::2].any()


@pytest.mark.parametrize("source", FLOATS)
def test_widening_into_given_room_is_exact(source: str) -> None:
    values = np.random.default_rng(0).normal(0, 10, (6, 8)).astype(BY_NAME[source].numpy)
    inner = np.float64 if source == "fp64" else np.float32
    room = np.empty((3, 4), inner)
    assert widen(values[::2, 1::2], room) is room
    assert np.array_equal(room, values[::2, 1::2].astype(inner))


def test_overflow_is_infinite_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    huge = np.array([3e38, -1e308])
    for source, target in (("fp32", "fp16"), ("fp64", "fp16"), ("fp64", "fp32"), ("fp64", "bf16")):
        values = huge[:1].astype(np.float32) if source == "fp32" else huge[1:]
        assert np.isinf(cast_array(values, BY_NAME[target]).astype(np.float64)).all()
    assert not recwarn.list


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_not_finite_is_counted(name: str) -> None:
    values = np.array([[0, -0.0, 1, np.inf], [np.nan, -np.inf, -np.nan, 65504]]).astype(BY_NAME[name].numpy)
    assert count_nonfinite(values) == 4
    assert count_nonfinite(values.T[::2]) == 2
    assert count_nonfinite(values[:0]) == 0
    assert count_nonfinite(values[0, 3].reshape(())) == 1


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_what_is_not_finite_is_counted_among_all_patterns(name: str) -> None:
    every = np.arange(65536, dtype=np.uint16).view(BY_NAME[name].numpy)
    with np.errstate(invalid="ignore"):
        expected = sum(not math.isfinite(value) for value in every.astype(np.float64).tolist())
    assert count_nonfinite(every) == expected
