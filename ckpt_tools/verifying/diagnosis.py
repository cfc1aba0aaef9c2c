"""Why a tensor is not what it must be, where the numbers tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ckpt_tools.reports import AdapterUse, Offender
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import reshape
from ckpt_tools.verifying.comparing import Measured
from ckpt_tools.verifying.exact import ExactFold
from ckpt_tools.verifying.rounding import unit_roundoff

__all__ = ["fitted", "judge_fold", "judge_plain", "pulls"]

_SURE = 8.0
_ROWS = 64


def fitted(measured: Measured) -> float | None:
    """How many times the exact change is in the weight: <merged - base, change> / <change, change>."""
    return 1 + measured.error_delta / measured.delta_square if measured.delta_square else None


def pulls(measured: Measured, coarse: DType) -> bool:
    """Whether errors lean to one side of the change, so that its scale is another, though each may be rounding.

    Of honest roundings as many go either way. Asked of the elements that are not the nearest to the exact value:
    their sum of error * change beyond 8 of its own standard deviations, and beyond what rounding the factors can do.
    """
    if not (measured.delta_square and measured.pull_square):
        return False
    is_sure = abs(measured.pull) > _SURE * math.sqrt(measured.pull_square)
    return is_sure and abs(measured.pull) > max(2 * unit_roundoff(coarse), 1e-4) * measured.delta_square


def judge_fold(
    name: str, uses: Sequence[AdapterUse], fold: ExactFold, found: LazyTensor, measured: Measured
) -> Offender:
    """What is wrong with a weight that has wrong elements, or whose scale is another."""
    flipped = _flipped_bit(measured, fold.dtype)
    if measured.wrong == 1 and flipped:
        return _at(name, measured, flipped)
    if measured.as_before == measured.elements:
        return Offender(name, "the base's weight, not merged", "base and adapter", "Was this layer left out?")
    if _is_swapped(fold, found):
        return Offender(name, "the change transposed: A and B swapped", "B @ A", "")
    ratio = fitted(measured)
    explains = _explained(measured)
    if ratio is not None and explains > 0.5:
        scales = sorted({use.scaling for use in uses if use.scaling is not None})
        if abs(ratio - 2) < 0.02:
            return Offender(
                name,
                f"twice the change{_scaled(scales, ratio)}",
                "the adapter once",
                "It was merged twice, or with twice the scaling",
            )
        if abs(ratio) < 0.02:
            return Offender(name, "nearly none of the change", "base and adapter", "Was this layer left out?")
        expected = f"scaling {scales[0]:.6g}" if len(scales) == 1 else "the adapters' own scaling"
        actual = _scaled(scales, ratio) or f", {ratio:.4g} times"
        return Offender(
            name, f"merged with another scale{actual}", expected, "Give the alpha or the scaling of the training"
        )
    text = f"{measured.wrong} of {measured.elements} elements beyond rounding, the first at {_first(measured)}"
    if not measured.wrong:
        text = f"errors that lean to one side of the change: {ratio:.4g} times the adapter"
    return Offender(name, text, "base and adapter", "Is it another base, or another adapter?")


def judge_plain(name: str, measured: Measured, dtype: DType, *, is_cast: bool) -> Offender:
    """What is wrong with a tensor that no adapter changes."""
    flipped = _flipped_bit(measured, dtype) if dtype.is_float else ""
    if measured.wrong == 1 and flipped:
        return _at(name, measured, flipped)
    expected = f"the base's, rounded to {dtype}" if is_cast else "the base's bytes"
    remedy = "Is it another base?" if measured.wrong > 0.01 * measured.elements else ""
    text = f"{measured.wrong} of {measured.elements} elements that differ, the first at {_first(measured)}"
    return Offender(name, text, expected, remedy)


def _scaled(scales: Sequence[float], ratio: float) -> str:
    return f", {ratio * scales[0]:.4g}" if len(scales) == 1 else ""


def _explained(measured: Measured) -> float:
    """The share of the errors' sum of squares that another scale explains."""
    if not (measured.error_square and measured.delta_square):
        return 0.0
    return measured.error_delta**2 / (measured.delta_square * measured.error_square)


def _first(measured: Measured) -> str:
    index, found, expected = measured.first[0]
    return f"{list(index)}: {found:.9g} instead of {expected:.9g}"


def _at(name: str, measured: Measured, flipped: str) -> Offender:
    index, found, expected = measured.first[0]
    where = f"{name}, element {list(index)}"
    return Offender(where, f"{found:.9g}: {flipped}", f"{expected:.9g}", "Copy the file again from where it was saved")


def _flipped_bit(measured: Measured, dtype: DType) -> str:
    """Which single bit makes the one wrong element of the right one; empty where it takes more."""
    if len(measured.first) != 1:
        return ""
    _, found, expected = measured.first[0]
    bits = np.dtype(f"u{dtype.itemsize}")
    with np.errstate(over="ignore"):
        one, other = (int(np.array(value).astype(dtype.numpy).view(bits)) for value in (found, expected))
    difference = one ^ other
    if difference.bit_count() != 1:
        return ""
    return f"bit {difference.bit_length() - 1} of {8 * dtype.itemsize} is flipped"


def _is_swapped(fold: ExactFold, found: LazyTensor) -> bool:
    """Whether the first rows have the transposed change, which only a square weight can have."""
    shape, terms = fold.shape, fold.fold.terms
    if len(shape) != 2 or shape[0] != shape[1] or len(terms) != 1 or fold.fold.magnitude is not None:
        return False
    rows, whole, rank = (0, min(_ROWS, shape[0])), (0, shape[1]), (0, terms[0].left.shape[-1])
    left = terms[0].left.read((whole, rank)).astype(np.float64)
    right = terms[0].right.read((rank, rows)).astype(np.float64)
    swapped = terms[0].scaling * (left @ right).T
    actual = reshape(found, shape).read((rows, whole)).astype(np.float64)
    change = actual - fold.weight.read((rows, whole)).astype(np.float64)
    square = float(np.vdot(swapped, swapped))
    return square > 0 and abs(float(np.vdot(change, swapped)) / square - 1) < 0.1
