"""Units in the last place and roundings, against numpy's and ml_dtypes' own."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.views import Constant
from ckpt_tools.verifying.comparing import compare_cast
from ckpt_tools.verifying.rounding import largest, round_to, smallest, ulp, unit_roundoff


def all_values(name: str) -> np.ndarray:
    dtype = BY_NAME[name].numpy
    if dtype.itemsize == 2:
        values = np.arange(2**16, dtype=np.uint16).view(dtype)
    else:
        bits = np.dtype(f"u{dtype.itemsize}")
        values = np.random.default_rng(0).integers(0, np.iinfo(bits).max, 20000, dtype=bits).view(dtype)
    with np.errstate(invalid="ignore"):  # of signalling NaN
        wide = values.astype(np.float64)
    return values[np.isfinite(wide)]


@pytest.mark.parametrize("name", ["fp16", "fp32", "fp64"])
def test_a_unit_is_numpys_spacing(name: str) -> None:
    values = np.abs(all_values(name))
    values = values[values < np.finfo(values.dtype).max]  # where numpy gives the distance to infinity
    assert np.array_equal(ulp(values.astype(np.float64), BY_NAME[name]), np.spacing(values).astype(np.float64))


def test_a_unit_of_bfloat16_is_the_distance_of_its_neighbours() -> None:
    values = np.arange(0x7F7F, dtype=np.uint16)
    low, high = (bits.view(ml_dtypes.bfloat16).astype(np.float64) for bits in (values, values + np.uint16(1)))
    assert np.array_equal(ulp(low, BY_NAME["bf16"]), high - low)


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32", "fp64"])
def test_limits_are_those_of_the_type(name: str) -> None:
    info = ml_dtypes.finfo(BY_NAME[name].numpy)
    assert largest(BY_NAME[name]) == float(info.max)
    assert smallest(BY_NAME[name]) == float(info.smallest_subnormal)
    assert unit_roundoff(BY_NAME[name]) == float(info.eps) / 2


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_rounding_is_that_of_numpy_and_ml_dtypes(name: str) -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, 200000, dtype=np.uint32)
    values = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(BY_NAME[name].numpy).astype(np.float64)
        wide = values.astype(np.float64)
    found = round_to(wide, BY_NAME[name])
    assert np.array_equal(found, expected, equal_nan=True)


def test_a_signalling_nan_that_was_cast_is_one_nan_and_no_warning() -> None:
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    quiet = np.array([np.nan], ml_dtypes.bfloat16)
    one, other = Constant(signalling, BY_NAME["fp32"]), Constant(quiet, BY_NAME["bf16"])
    assert compare_cast(one, other, ((0, 1),)).wrong == 0
