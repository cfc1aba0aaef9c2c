"""Casts between float types: rounded once, to nearest even, and faster than numpy where numpy is slow.

ml_dtypes casts bfloat16 at memory speed; numpy casts float16 element by element (2.4 ns up, 4.2 ns down on a 2.5 GHz
Xeon). The bit arithmetic here does it in whole-array operations: 0.9 ns up and 2 ns down, with the same bits.
"""

from __future__ import annotations

import numpy as np

from ckpt_tools.tensors.dtypes import BY_NAME, DType

__all__ = ["cast_array", "count_nonfinite", "narrow", "widen"]

_FLOAT16, _BFLOAT16 = BY_NAME["fp16"].numpy, BY_NAME["bf16"].numpy
_FLOAT32, _FLOAT64 = BY_NAME["fp32"].numpy, BY_NAME["fp64"].numpy

# The exponent fields of the 16-bit types: all ones means Inf or NaN.
_EXPONENT_MASK = {_FLOAT16: np.uint16(0x7C00), _BFLOAT16: np.uint16(0x7F80)}

# float32 bit patterns, without the sign, between which rounding to a normal, finite float16 is plain bit arithmetic.
_SMALLEST_NORMAL_HALF = np.uint32(0x38800000)  # 2**-14
_LARGEST_ROUNDED_HALF = np.uint32(0x477FF000)  # 65520, the first that rounds to Inf

_PIECE_ELEMENTS = 2**18

# Elements for which the fix-up by index is cheaper than numpy's cast of everything.
_MAX_SPECIAL_SHARE = 0.2


def cast_array(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Values in another float type, each rounded once to nearest even.

    Args:
        values: Floats of any shape.
        dtype: The float type to cast to.

    Returns:
        An array of the same shape; `values` itself where the type is the same.
    """
    if values.dtype == dtype.numpy:
        return values
    result = np.empty(values.shape, dtype.numpy)
    narrow(values if dtype.numpy == _FLOAT64 else widen(values), result)
    return result


def widen(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Values as float32, exactly; float64 is left as it is.

    Args:
        values: float16, bfloat16, float32 or float64, of any shape and strides.
        out: Where to put them: C-contiguous float32 (float64) of the same shape. By default a new array, or `values`
            itself where nothing has to be done.
    """
    if values.dtype in (_FLOAT32, _FLOAT64):
        if out is None:
            return values
        out[...] = values
        return out
    if out is None:
        out = np.empty(values.shape, np.float32)
    if values.dtype != _FLOAT16:
        out[...] = values
        return out
    # Sign-extending puts the sign into place; the 5-bit exponent becomes an 8-bit one by a multiplication that is
    # exact, for subnormal numbers too (F. Giesen, "half to float done quick", 2012).
    bits = out.view(np.int32)
    bits[...] = values.view(np.int16)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)
    if np.max(out, initial=0.0) >= 65536.0 or np.min(out, initial=0.0) <= -65536.0:
        out[...] = values  # Inf and NaN have no exponent to rebias
    return out


def narrow(values: np.ndarray, out: np.ndarray) -> None:
    """Round values to the type of `out`, once.

    Args:
        values: Floats of any shape and strides.
        out: Where to put them; the same shape, any strides.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if out.dtype == _FLOAT16 and values.dtype == _FLOAT32:
            # numpy turns arrays without axes into scalars, which cannot be written to.
            _narrow_to_half(np.atleast_1d(values), np.atleast_1d(out))
        elif out.dtype == _BFLOAT16 and values.dtype == _FLOAT64:
            # ml_dtypes goes through float32, which would round twice.
            out[...] = _round_to_odd(values)
        else:
            out[...] = values


def _narrow_to_half(values: np.ndarray, out: np.ndarray) -> None:
    bits = values.view(np.uint32)
    magnitude = np.bitwise_and(bits, np.uint32(0x7FFFFFFF))
    np.subtract(magnitude, _SMALLEST_NORMAL_HALF, out=magnitude)  # smaller ones wrap around to huge
    special = magnitude >= _LARGEST_ROUNDED_HALF - _SMALLEST_NORMAL_HALF
    specials = np.count_nonzero(special)
    if specials > _MAX_SPECIAL_SHARE * values.size:
        out[...] = values
        return
    # Round the 13 bits that go to nearest even: add half a unit less one, plus the last bit that stays.
    rounded = magnitude
    np.right_shift(bits, 13, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.add(rounded, np.uint32(0xFFF), out=rounded)
    np.right_shift(rounded, 13, out=rounded)
    half = rounded.astype(np.uint16)
    np.subtract(half, np.uint16((112 << 10) & 0xFFFF), out=half)  # the exponent's bias: 127 - 15
    np.bitwise_and(half, np.uint16(0x7FFF), out=half)
    np.right_shift(bits, 16, out=rounded)
    sign = rounded.astype(np.uint16)
    np.bitwise_and(sign, np.uint16(0x8000), out=sign)
    np.bitwise_or(half, sign, out=half)
    result = half.view(np.float16)
    if specials:
        result[special] = values[special]
    out[...] = result


def _round_to_odd(values: np.ndarray) -> np.ndarray:
    """float64 values as float32 whose last bit remembers that something was cut off.

    A second rounding to a type with at least two bits less is then the same as one rounding of the original
    (S. Boldo and G. Melquiond, "When double rounding is odd", 2005).
    """
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    bits -= np.abs(back) > np.abs(values)
    bits |= (back != values) & ~np.isnan(values)
    return nearest


def count_nonfinite(values: np.ndarray) -> int:
    """How many elements are NaN or Inf."""
    mask = _EXPONENT_MASK.get(values.dtype)
    flat = values.reshape(-1)
    total = 0
    # In pieces, so that what is computed on the way stays in the cache.
    for start in range(0, flat.size, _PIECE_ELEMENTS):
        piece = flat[start : start + _PIECE_ELEMENTS]
        if mask is None:
            total += piece.size - int(np.count_nonzero(np.isfinite(piece)))
            continue
        exponents = np.bitwise_and(piece.view(np.uint16), mask)
        if exponents.max() == mask:  # seldom, and cheaper to find than to count
            total += int(np.count_nonzero(exponents == mask))
    return total
