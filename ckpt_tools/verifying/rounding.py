"""Units in the last place, and rounding to nearest even, by float64 arithmetic alone.

Nothing of it is shared with the casts and kernels that a merge uses.
"""

from __future__ import annotations

import numpy as np

from ckpt_tools.tensors.dtypes import DType

__all__ = ["largest", "round_to", "smallest", "ulp", "unit_roundoff"]

# Explicit bits of the mantissa, exponent of the smallest normal number, exponent of the largest.
_FORMATS = {"fp16": (10, -14, 15), "bf16": (7, -126, 127), "fp32": (23, -126, 127), "fp64": (52, -1022, 1023)}


def unit_roundoff(dtype: DType) -> float:
    """Half a unit in the last place of 1: the relative error of one rounding."""
    return 2.0 ** -(_FORMATS[dtype.name][0] + 1)


def largest(dtype: DType) -> float:
    """The largest finite number of a type."""
    bits, _, exponent = _FORMATS[dtype.name]
    return (2.0 - 2.0**-bits) * 2.0**exponent


def smallest(dtype: DType) -> float:
    """The smallest positive number of a type, a subnormal one."""
    bits, exponent, _ = _FORMATS[dtype.name]
    return 2.0 ** (exponent - bits)


def ulp(values: np.ndarray, dtype: DType) -> np.ndarray:
    """The distance of a type's neighbouring numbers at some values.

    Args:
        values: float64.
        dtype: `fp16`, `bf16`, `fp32` or `fp64`.

    Returns:
        float64 of the same shape: 2^(e - mantissa bits) for values of 2^e to 2^(e+1), and the smallest subnormal number
        below the normal ones.
    """
    bits, lowest, _ = _FORMATS[dtype.name]
    # The exponent's bits alone are the power of two below.
    powers = (np.ascontiguousarray(values).view(np.uint64) & np.uint64(0x7FF0000000000000)).view(np.float64)
    np.maximum(powers, 2.0**lowest, out=powers)
    return np.multiply(powers, 2.0**-bits, out=powers)


def round_to(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Values rounded to nearest even in a type, as float64; what is beyond its range becomes infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        unit = ulp(values, dtype)
        rounded = values / unit
        np.rint(rounded, out=rounded)
        rounded *= unit
        if np.max(np.abs(rounded), initial=0.0) <= largest(dtype):  # which NaN is not
            return rounded
        rounded = np.where(np.isfinite(values), rounded, values)
        return np.where(np.abs(rounded) > largest(dtype), np.copysign(np.inf, rounded), rounded)
