"""One tensor of a merged checkpoint beside what it must be: errors, and what tells where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import LazyTensor, Region
from ckpt_tools.tensors.views import reshape
from ckpt_tools.verifying.exact import ExactFold, Tile
from ckpt_tools.verifying.rounding import largest, round_to, ulp

__all__ = ["Measured", "compare_cast", "compare_fold", "compare_same"]

_KEPT = 2
# What of several rectangles adds up.
_SUMS = (
    *("elements", "wrong", "as_before", "swamped", "before_square", "delta_square"),
    *("error_square", "error_delta", "pull", "pull_square"),
)


@dataclass(slots=True)
class Measured:
    """What comparing gave; that of several rectangles adds up.

    Attributes:
        elements: Elements that were compared.
        wrong: Elements beyond what is allowed.
        worst: The largest error, in units in the last place of the exact value.
        worst_at: Where it is.
        of_limit: The largest error in shares of its limit.
        first: The first wrong elements: index, what is there, what should be.
        as_before: Elements that are the weight before in the output's type.
        swamped: Elements that are so, and would be if merged exactly.
        before_square: Sum of squares of the weight before.
        delta_square: Sum of squares of the exact change.
        error_square: Sum of squares of the error.
        error_delta: Sum of error * exact change.
        pull: The same over the elements that are not the nearest to the exact value.
        pull_square: Sum of the squares of its terms.
    """

    elements: int = 0
    wrong: int = 0
    worst: float = 0.0
    worst_at: tuple[int, ...] | None = None
    of_limit: float = 0.0
    first: list[tuple[tuple[int, ...], float, float]] = field(default_factory=list)
    as_before: int = 0
    swamped: int = 0
    before_square: float = 0.0
    delta_square: float = 0.0
    error_square: float = 0.0
    error_delta: float = 0.0
    pull: float = 0.0
    pull_square: float = 0.0

    def add(self, other: Measured) -> None:
        """Add another rectangle's, which lies behind this one's."""
        if other.worst > self.worst or self.worst_at is None:
            self.worst, self.worst_at = other.worst, other.worst_at
        self.of_limit = max(self.of_limit, other.of_limit)
        self.first = (self.first + other.first)[:_KEPT]
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def compare_same(expected: LazyTensor, found: LazyTensor, region: Region) -> Measured:
    """Byte for byte."""
    one, other = expected.read(region), found.read(region)
    first, second = (np.ascontiguousarray(values).reshape(-1).view(np.uint8) for values in (one, other))
    measured = Measured(elements=one.size)
    if not np.array_equal(first, second):
        wrong = (first != second).reshape(one.size, -1).any(1)
        measured.wrong = int(np.count_nonzero(wrong))
        for flat in np.flatnonzero(wrong)[:_KEPT]:
            place = _index(region, one.shape, int(flat))
            measured.first.append((place, _number(other.reshape(-1)[flat]), _number(one.reshape(-1)[flat])))
    return measured


def compare_cast(expected: LazyTensor, found: LazyTensor, region: Region) -> Measured:
    """The weight, rounded to nearest even in the type of what was found."""
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        exact = round_to(expected.read(region).astype(np.float64), found.dtype)
        actual = found.read(region).astype(np.float64)
    same = (exact == actual) & (np.signbit(exact) == np.signbit(actual)) | (np.isnan(exact) & np.isnan(actual))
    measured = Measured(elements=exact.size, wrong=int(exact.size - np.count_nonzero(same)))
    if measured.wrong:
        for flat in np.flatnonzero(~same.reshape(-1))[:_KEPT]:
            place = _index(region, exact.shape, int(flat))
            measured.first.append((place, float(actual.reshape(-1)[flat]), float(exact.reshape(-1)[flat])))
    return measured


def compare_fold(fold: ExactFold, found: LazyTensor, region: Region, max_ulp: float | None) -> Measured:
    """A weight with adapters folded in; `region` is one of `fold.shape`.

    Args:
        fold: What it must be.
        found: What was found, in the type of the fold.
        region: Whole rows.
        max_ulp: How far it may be, in units in the last place of the exact value, instead of the fold's bound.
    """
    measured = Measured()
    actual = reshape(found, fold.shape).read(region)
    is_cast = fold.fold.weight.dtype != fold.dtype
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for place, tile in fold.tiles(region):
            values = actual[tuple(slice(*span) for span in place)].astype(np.float64)
            # Of a weight in the output's type, rounding to that changes nothing.
            before = round_to(tile.before, fold.dtype) if is_cast else tile.before
            within = tuple((low + start, low + stop) for (low, _), (start, stop) in zip(region, place, strict=True))
            measured.add(_measure(tile, values, before, fold.dtype, max_ulp, within))
    return measured


def _measure(
    tile: Tile, actual: np.ndarray, rounded: np.ndarray, dtype: DType, max_ulp: float | None, region: Region
) -> Measured:
    """One tile: `actual` beside `tile.exact`; `rounded` is `tile.before` in the output's type, all of them float64."""
    exact, delta = tile.exact, tile.exact - tile.before
    error = actual - exact
    unit = ulp(exact, dtype)
    bound = tile.bound if max_ulp is None else max_ulp * unit
    size = np.abs(error)
    ratio = size / unit
    right = size <= bound
    worst = int(np.argmax(ratio))  # NaN, of whatever is not finite, counts as the largest
    if np.isfinite(ratio.reshape(-1)[worst]):
        of_limit = float(np.max(size / bound, initial=0.0))
    else:
        odd = _judge_nonfinite(exact, actual, bound, dtype, right, ratio, error)
        delta[odd & ~np.isfinite(delta)] = 0.0
        worst = int(np.argmax(ratio))
        of_limit = float(np.max(size / bound, initial=0.0, where=~odd))
    measured = Measured(elements=exact.size, wrong=int(exact.size - np.count_nonzero(right)), of_limit=of_limit)
    measured.worst, measured.worst_at = float(ratio.reshape(-1)[worst]), _index(region, exact.shape, worst)
    kept = actual == rounded
    measured.as_before = int(np.count_nonzero(kept))
    measured.swamped = int(np.count_nonzero(kept & (ratio <= 0.5) & (delta != 0)))
    flat, change = error.reshape(-1), delta.reshape(-1)
    measured.before_square = float(np.vdot(tile.before, tile.before))
    measured.delta_square = float(change @ change)
    measured.error_square = float(flat @ flat)
    measured.error_delta = float(flat @ change)
    off = np.flatnonzero(ratio.reshape(-1) > 0.5)
    products = flat[off] * change[off]
    measured.pull, measured.pull_square = float(products.sum()), float(products @ products)
    if measured.wrong:
        for index in np.flatnonzero(~right)[:_KEPT]:
            place = _index(region, exact.shape, int(index))
            measured.first.append((place, float(actual.reshape(-1)[index]), float(exact.reshape(-1)[index])))
    return measured


def _judge_nonfinite(
    exact: np.ndarray,
    actual: np.ndarray,
    bound: np.ndarray,
    dtype: DType,
    right: np.ndarray,
    ratio: np.ndarray,
    error: np.ndarray,
) -> np.ndarray:
    """NaN where NaN is due, Inf where the exact value is Inf or rounds to it; everything else is infinitely wrong.

    Returns:
        Where one of the two is not finite; there `right`, `ratio` and `error` are corrected in place.
    """
    overflows = np.abs(exact) + bound > largest(dtype)
    due = np.isnan(exact) & np.isnan(actual) | (exact == actual)
    due |= overflows & np.isinf(actual) & (np.signbit(actual) == np.signbit(exact))
    odd = np.asarray(~(np.isfinite(exact) & np.isfinite(actual)))
    right[odd] = due[odd]
    ratio[odd] = np.where(due[odd], 0.0, np.inf)
    error[odd] = 0.0
    return odd


def _index(region: Region, shape: tuple[int, ...], flat: int) -> tuple[int, ...]:
    return tuple(int(i) + start for i, (start, _) in zip(np.unravel_index(flat, shape), region, strict=True))


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
