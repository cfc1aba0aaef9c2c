"""The compiled kernels: what is done for every element, in one pass over memory.

They are optional. Where no C compiler was at hand when the package was built, `AVAILABLE` is false, every function here
answers that it did nothing, and the callers do the same in numpy, with the same bits and in more time.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import Statistics

__all__ = ["AVAILABLE", "VARIANTS", "cast", "count_nonfinite", "fold_tile"]

_LIBRARY = Path(__file__).with_name("_native.so")
_REVISION = 2

# The numbers that native.c gives to the types.
_TYPES = {BY_NAME[name].numpy: number for number, name in enumerate(("fp16", "bf16", "fp32", "fp64"))}
_FLOAT32, _FLOAT64 = BY_NAME["fp32"].numpy, BY_NAME["fp64"].numpy


class _Measured(ctypes.Structure):
    _fields_ = (
        ("weight_square", ctypes.c_double),
        ("delta_square", ctypes.c_double),
        ("unchanged", ctypes.c_int64),
        ("nonfinite_input", ctypes.c_int64),
        ("nonfinite_output", ctypes.c_int64),
    )


class _Tile(ctypes.Structure):
    _fields_ = (
        ("stored", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("stored_row", ctypes.c_ssize_t),
        ("delta_row", ctypes.c_ssize_t),
        ("factor_row", ctypes.c_ssize_t),
        ("factor_step", ctypes.c_ssize_t),
        ("out_row", ctypes.c_ssize_t),
        ("stored_type", ctypes.c_int32),
        ("out_type", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        if library.pet_revision() != _REVISION:
            return None
    except (OSError, AttributeError):
        return None
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    library.pet_variants.argtypes, library.pet_variants.restype = (), int32
    library.pet_fold.argtypes = (int32, ctypes.POINTER(_Tile), ctypes.POINTER(_Measured))
    library.pet_cast.argtypes = (int32, pointer, int32, pointer, int32, int64)
    library.pet_nonfinite.argtypes, library.pet_nonfinite.restype = (int32, pointer, int32, int64), int64
    library.pet_fold.restype = library.pet_cast.restype = None
    return library


_library = _load()

AVAILABLE = _library is not None
VARIANTS: int = 0 if _library is None else _library.pet_variants()
"""How many variants of the kernels this processor can run."""

_variant = VARIANTS - 1


def fold_tile(
    stored: np.ndarray,
    delta: np.ndarray,
    factor: np.ndarray | None,
    out: np.ndarray,
    statistics: Statistics | None,
) -> bool:
    """`out = (stored + delta) * factor` in float32, rounded once to nearest even, and what is measured of it.

    Args:
        stored: `(rows, columns)`, float16, bfloat16 or float32; elements of a row side by side.
        delta: float32 of the same shape; elements of a row side by side.
        factor: float32 of the same shape and any strides, or None for no factor.
        out: Where to put the result: the same shape, float16, bfloat16 or float32; elements of a row side by side, and
            not where `stored` lies.
        statistics: Where to add what is measured.

    Returns:
        Whether it was done; if not, nothing was.
    """
    if _library is None or stored.dtype == _FLOAT64 or out.dtype == _FLOAT64:
        return False
    tile = _Tile(
        stored.ctypes.data,
        delta.ctypes.data,
        None if factor is None else factor.ctypes.data,
        out.ctypes.data,
        stored.strides[0],
        delta.strides[0],
        0 if factor is None else factor.strides[0],
        0 if factor is None else factor.strides[1],
        out.strides[0],
        _TYPES[stored.dtype],
        _TYPES[out.dtype],
        *out.shape,
    )
    measured = None if statistics is None else _Measured()
    _library.pet_fold(_variant, tile, measured)
    if statistics is not None and measured is not None:
        statistics.add(
            Statistics(
                out.size,
                weight_square=measured.weight_square,
                delta_square=measured.delta_square,
                unchanged=measured.unchanged,
                nonfinite_input=measured.nonfinite_input,
                nonfinite_output=measured.nonfinite_output,
            )
        )
    return True


def cast(values: np.ndarray, out: np.ndarray) -> bool:
    """Values in another type, each rounded once to nearest even.

    Args:
        values: float16, bfloat16 or float32, of any shape.
        out: Where to put them: the same shape; any type, but nothing is done for other types than those three.

    Returns:
        Whether it was done; if not, nothing was.
    """
    if (
        _library is None
        or values.dtype not in _TYPES
        or out.dtype not in _TYPES
        or _FLOAT64 in (values.dtype, out.dtype)
        or not (values.flags.c_contiguous and out.flags.c_contiguous)
    ):
        return False
    _library.pet_cast(
        _variant, values.ctypes.data, _TYPES[values.dtype], out.ctypes.data, _TYPES[out.dtype], values.size
    )
    return True


def count_nonfinite(values: np.ndarray) -> int | None:
    """How many elements are NaN or Inf; None where that was not counted.

    Args:
        values: float16, bfloat16, float32 or float64; `(elements,)`.
    """
    if _library is None or not values.flags.c_contiguous:
        return None
    return int(_library.pet_nonfinite(_variant, values.ctypes.data, _TYPES[values.dtype], values.size))
