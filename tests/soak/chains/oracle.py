"""What a tensor must be: float64 arithmetic on whole arrays, with a bound by the roundings on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from merge_cases import MANTISSA_BITS, NUMPY, SMALLEST_EXPONENT

FLOATS = {np.dtype(numpy_type): name for name, numpy_type in NUMPY.items()}

# What float64 arithmetic of the oracle itself may lose, of the magnitudes that it adds.
_OWN_LOSS = 2.0**-48


class WrongTensorError(AssertionError):
    """An output is not what arithmetic says."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a chain.

    Attributes:
        bits: What the last command left, and was proved.
        ideal: What it would be if nothing had been rounded since the chain began, in float64; None for integers.
        bound: How far roundings may have led each element away from that.
    """

    bits: np.ndarray
    ideal: np.ndarray | None
    bound: np.ndarray | None

    @property
    def dtype(self) -> str | None:
        """`bf16` and the like; None for what is no floating-point type that is computed with."""
        return FLOATS.get(self.bits.dtype)


Model = dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """scaling * (left @ right), which an adapter adds; each factor laid out for that product.

    `off` is how far a product that was computed before may be from that.
    """

    left: Tensor
    right: Tensor
    scaling: float
    off: np.ndarray | None = None


@dataclass(frozen=True)
class Expected:
    """A tensor that has to come out.

    Attributes:
        near: What the command must compute from the bits that it was given: exact where `allowed` is None.
        allowed: How far each element may be from `near`.
        ideal, bound: As of `Tensor`.
        dtype: The type that it must have.
    """

    near: np.ndarray
    allowed: np.ndarray | None
    ideal: np.ndarray | None
    bound: np.ndarray | None
    dtype: np.dtype = field(kw_only=True)


@dataclass
class Tally:
    """What was compared."""

    tensors: int = 0
    elements: int = 0


def fresh(array: np.ndarray) -> Tensor:
    """A tensor with which a chain begins."""
    if array.dtype not in FLOATS:
        return Tensor(array, None, None)
    return Tensor(array, array.astype(np.float64), np.zeros(array.shape))


def unit(values: np.ndarray, dtype: str) -> np.ndarray:
    """The unit in the last place of each value, in a type."""
    exponents = np.maximum(np.frexp(values)[1] - 1, SMALLEST_EXPONENT[dtype])
    return np.ldexp(1.0, exponents - MANTISSA_BITS[dtype])


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 to a type, to nearest and ties to even, in one step: a conversion by way of float32 rounds twice."""
    size = unit(values, dtype)
    return (np.rint(values / size) * size).astype(NUMPY[dtype])


def same(tensor: Tensor) -> Expected:
    """Not a bit changes."""
    return Expected(tensor.bits, None, tensor.ideal, tensor.bound, dtype=tensor.bits.dtype)


def cast(tensor: Tensor, dtype: str | None) -> Expected:
    """Rounded to another type, where it is a floating-point tensor; None keeps the type."""
    if dtype is None or tensor.dtype in (None, dtype):
        return same(tensor)
    exact = tensor.bits.astype(np.float64)
    bits = rounded(exact, dtype)
    return Expected(bits, None, tensor.ideal, tensor.bound + np.abs(bits.astype(np.float64) - exact), dtype=bits.dtype)


def folded(tensor: Tensor, terms: Sequence[Term], dtype: str | None, magnitudes: Tensor | None = None) -> Expected:
    """A weight with adapters folded in: sums in float32, or in float64 where the weight is, rounded once.

    Half a unit in the last place from that rounding, and what the sums may lose of the magnitudes that go into them.

    Args:
        tensor: The weight.
        terms: What is added.
        dtype: The type that comes out; None for the weight's.
        magnitudes: DoRA's, `(out,)`: the norms that rows are given behind the sum.
    """
    assert tensor.ideal is not None
    assert tensor.bound is not None
    shape, own = tensor.bits.shape, str(tensor.dtype)
    exact, ideal = tensor.bits.astype(np.float64), tensor.ideal
    magnitude, drift = np.abs(exact), tensor.bound
    sums, before = 2, np.zeros(shape)
    for term in terms:
        left, right = term.left.bits.astype(np.float64), term.right.bits.astype(np.float64)
        exact = exact + term.scaling * (left @ right).reshape(shape)
        magnitude = magnitude + abs(term.scaling) * (np.abs(left) @ np.abs(right)).reshape(shape)
        ideal = ideal + term.scaling * (term.left.ideal @ term.right.ideal).reshape(shape)
        off = term.left.bound @ np.abs(right) + np.abs(left) @ term.right.bound + term.left.bound @ term.right.bound
        drift = drift + abs(term.scaling) * off.reshape(shape)
        sums += left.shape[-1] + 2
        before = before if term.off is None else before + abs(term.scaling) * term.off.reshape(shape)
    target = dtype or own
    roundoff, smallest = (2.0**-52, 2.0**-1074) if own == "fp64" else (2.0**-24, 2.0**-149)
    lost = sums * (roundoff * magnitude + smallest) + before
    if magnitudes is not None:
        (exact, lost), (ideal, drift) = _rescaled(exact, lost, ideal, drift, magnitudes, roundoff)
        magnitude = np.abs(exact)
    allowed = 0.5 * unit(np.abs(exact) + lost, target) + lost + _OWN_LOSS * magnitude
    return Expected(exact, allowed, ideal, drift + allowed, dtype=np.dtype(NUMPY[target]))


_Bounded = tuple[np.ndarray, np.ndarray]


def _rescaled(
    exact: np.ndarray, lost: np.ndarray, ideal: np.ndarray, drift: np.ndarray, magnitudes: Tensor, roundoff: float
) -> tuple[_Bounded, _Bounded]:
    """m / ||V|| * V of each row, and its error where V has one: that of V, and by the norm that of the whole row."""

    def norms(values: np.ndarray) -> np.ndarray:
        return np.sqrt(np.sum(values**2, axis=1, keepdims=True))

    assert magnitudes.ideal is not None
    assert magnitudes.bound is not None
    factors = magnitudes.bits.astype(np.float64)[:, None] / norms(exact)
    scaled, scaled_ideal = factors * exact, magnitudes.ideal[:, None] / norms(ideal) * ideal
    lost = np.abs(factors) * lost + np.abs(scaled) * (1.01 * norms(lost) / norms(exact) + 8 * roundoff)
    by_row = norms(drift) / norms(ideal) * np.abs(factors) + magnitudes.bound[:, None] / norms(ideal)
    return (scaled, lost), (scaled_ideal, np.abs(factors) * drift + by_row * np.abs(ideal))


def compare(found: Mapping[str, np.ndarray], expected: Mapping[str, Expected], tally: Tally) -> Model:
    """Hold an output to what it must be; the tensors with which the chain goes on.

    Raises:
        WrongTensorError: A tensor is missing, too many, of another type or shape, or has an element that is wrong.
    """
    if found.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise WrongTensorError(f"missing {missing}, not expected {unknown}")
    model = {name: _compared(name, found[name], one) for name, one in expected.items()}
    tally.tensors += len(model)
    tally.elements += sum(tensor.bits.size for tensor in model.values())
    return model


def _compared(name: str, found: np.ndarray, expected: Expected) -> Tensor:
    if (found.dtype, found.shape) != (expected.dtype, expected.near.shape):
        expectation = f"{expected.dtype} {expected.near.shape}"
        raise WrongTensorError(f"{name}: expected {expectation}, found {found.dtype} {found.shape}")
    if expected.allowed is None:
        wrong = bits_of(found) != bits_of(expected.near)
    else:
        # What is not finite compares as wrong.
        wrong = ~(np.abs(found.astype(np.float64) - expected.near) <= expected.allowed)
    _refuse(name, found, expected.near, wrong)
    if expected.ideal is not None:
        slack = expected.bound + _OWN_LOSS * (np.abs(expected.ideal) + 1)
        _refuse(name, found, expected.ideal, ~(np.abs(found.astype(np.float64) - expected.ideal) <= slack))
    return Tensor(found, expected.ideal, expected.bound)


def _refuse(name: str, found: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> None:
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        what = f"expected {expected[place]!r}, found {found[place]!r}"
        raise WrongTensorError(f"{name}{list(place)}: {what}; {int(wrong.sum())} of {found.size} elements are wrong")


def bits_of(array: np.ndarray) -> np.ndarray:
    """The bits of each element as one number, so that -0.0 and 0.0 differ and NaN is itself."""
    return np.ascontiguousarray(array).reshape(array.shape).view(f"u{array.dtype.itemsize}")


def stacked(tensor: Tensor, *changes: str) -> Tensor:
    """A factor as its product wants it: `transposed`, or as a matrix of `rows`, of `columns`."""
    return reduce(_changed, changes, tensor)


def _changed(tensor: Tensor, change: str) -> Tensor:
    def apply(array: np.ndarray) -> np.ndarray:
        if change == "transposed":
            return array.swapaxes(-1, -2)
        return array.reshape(len(array), -1)

    assert tensor.ideal is not None
    assert tensor.bound is not None
    return Tensor(apply(tensor.bits), apply(tensor.ideal), apply(tensor.bound))
