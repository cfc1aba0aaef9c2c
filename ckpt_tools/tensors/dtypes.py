"""The element types of checkpoints, with the names that each format gives them: one table, its inverses derived."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

__all__ = ["BY_MINDSPORE_NAME", "BY_NAME", "BY_SAFETENSORS_NAME", "DType", "dtype_of"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: The name in this project's options and reports, e.g. `bf16`.
        numpy: The numpy type of an element in memory: of `str`, a code point; of `int4` and `hifloat8`, which numpy
            lacks, the byte that holds one.
        mindspore: `tensor_type` in a `.ckpt`, which is `str()` of MindSpore's type, or None where it has no such type.
        safetensors: `dtype` in a safetensors header, or None where that format has no such type.
        is_float: Whether values are real floating-point numbers that can be merged and cast.
    """

    name: str
    numpy: np.dtype
    mindspore: str | None
    safetensors: str | None
    is_float: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return self.numpy.itemsize

    def __str__(self) -> str:
        return self.name


_TABLE = (
    DType("bool", np.dtype(np.bool_), "Bool", "BOOL"),
    DType("int4", np.dtype(np.int8), "Int4", None),
    DType("int8", np.dtype(np.int8), "Int8", "I8"),
    DType("int16", np.dtype(np.int16), "Int16", "I16"),
    DType("int32", np.dtype(np.int32), "Int32", "I32"),
    DType("int64", np.dtype(np.int64), "Int64", "I64"),
    DType("uint8", np.dtype(np.uint8), "UInt8", "U8"),
    DType("uint16", np.dtype(np.uint16), "UInt16", "U16"),
    DType("uint32", np.dtype(np.uint32), "UInt32", "U32"),
    DType("uint64", np.dtype(np.uint64), "UInt64", "U64"),
    DType("fp16", np.dtype(np.float16), "Float16", "F16", is_float=True),
    DType("fp32", np.dtype(np.float32), "Float32", "F32", is_float=True),
    DType("fp64", np.dtype(np.float64), "Float64", "F64", is_float=True),
    DType("bf16", np.dtype(ml_dtypes.bfloat16), "BFloat16", "BF16", is_float=True),
    DType("fp8_e4m3", np.dtype(ml_dtypes.float8_e4m3fn), "Float8E4M3FN", "F8_E4M3"),
    DType("fp8_e5m2", np.dtype(ml_dtypes.float8_e5m2), "Float8E5M2", "F8_E5M2"),
    DType("fp8_e8m0", np.dtype(ml_dtypes.float8_e8m0fnu), None, "F8_E8M0"),
    DType("hifloat8", np.dtype(np.uint8), "HiFloat8", None),
    DType("complex64", np.dtype(np.complex64), "Complex64", "C64"),
    DType("complex128", np.dtype(np.complex128), "Complex128", None),
    DType("str", np.dtype("<u4"), "str", None),
)

BY_NAME = {dtype.name: dtype for dtype in _TABLE}
BY_MINDSPORE_NAME = {dtype.mindspore: dtype for dtype in _TABLE if dtype.mindspore is not None}
BY_SAFETENSORS_NAME = {dtype.safetensors: dtype for dtype in _TABLE if dtype.safetensors is not None}

# These share a numpy type with int8, uint8 and uint32: only the plain ones are found by numpy type.
_BY_NUMPY = {dtype.numpy: dtype for dtype in _TABLE if dtype.name not in ("int4", "hifloat8", "str")}


def dtype_of(array: np.ndarray) -> DType:
    """The element type of a numpy array.

    Raises:
        KeyError: The array's type is in no checkpoint format.
    """
    return _BY_NUMPY[array.dtype]
