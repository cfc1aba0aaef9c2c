"""Parameters as arrays, and arrays as parameters' values; the same bits on both sides."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from ckpt_tools.tensors.dtypes import BY_MINDSPORE_NAME, DType
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Constant
from surgery.network.packages import Parameter, Tensor, mindspore

__all__ = ["array_of", "dtype_of", "lazy_of", "set_values"]


def array_of(parameter: Parameter) -> np.ndarray:
    """A parameter's values; bfloat16 as ml_dtypes has it, since MindSpore's own is another numpy type."""
    if parameter.dtype == mindspore.bfloat16:
        return parameter.astype(mindspore.float32).asnumpy().astype(ml_dtypes.bfloat16)
    return parameter.asnumpy()


def lazy_of(parameter: Parameter) -> LazyTensor:
    """A parameter's values as a tensor of the checkpoint tools."""
    return Constant(array_of(parameter), dtype_of(parameter))


def dtype_of(parameter: Parameter) -> DType:
    """A parameter's element type."""
    return BY_MINDSPORE_NAME[str(parameter.dtype)]


def set_values(parameter: Parameter, values: np.ndarray) -> None:
    """Give a parameter other values of its shape; a value that its type does not have is rounded to the nearest."""
    if parameter.dtype == mindspore.bfloat16 or values.dtype == ml_dtypes.bfloat16:
        values = values.astype(np.float32)
    parameter.set_data(Tensor(np.ascontiguousarray(values), parameter.dtype))
