"""Casts between float types: each value rounded once, to nearest even.

The compiled kernels do them at memory speed. Where those are missing, numpy gives the same bits: slowly for float16,
which it casts element by element.
"""

from __future__ import annotations

import numpy as np

from ckpt_tools.tensors import native
from ckpt_tools.tensors.dtypes import BY_NAME, DType

__all__ = ["cast_array", "count_nonfinite", "narrow", "widen"]

_BFLOAT16, _FLOAT32, _FLOAT64 = (BY_NAME[name].numpy for name in ("bf16", "fp32", "fp64"))

_PIECE_ELEMENTS = 2**18


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
    if not native.cast(values, result):
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
    if not native.cast(values, out):
        out[...] = values
    return out


def narrow(values: np.ndarray, out: np.ndarray) -> None:
    """Round values to the type of `out`, once.

    Args:
        values: Floats of any shape and strides.
        out: Where to put them; the same shape, any strides.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if out.dtype == _BFLOAT16 and values.dtype == _FLOAT64:
            # ml_dtypes goes through float32, which would round twice.
            out[...] = _round_to_odd(values)
        elif not native.cast(values, out):
            out[...] = values


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
    flat = values.reshape(-1)
    counted = native.count_nonfinite(flat)
    if counted is not None:
        return counted
    # In pieces, so that what is computed on the way stays in the cache.
    pieces = (flat[start : start + _PIECE_ELEMENTS] for start in range(0, flat.size, _PIECE_ELEMENTS))
    with np.errstate(invalid="ignore"):
        return sum(piece.size - int(np.count_nonzero(np.isfinite(piece))) for piece in pieces)
