"""How an adapter's factors fit a weight: which way round they go, and what is wrong where they don't."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckpt_tools.tensors.folding import LowRankTerm
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Transposed, reshape
from surgery.errors import Problem
from surgery.grouping import LoraPair

__all__ = ["Fit", "fit_pair", "term_of"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Which way round an update goes.

    Attributes:
        matrix_shape: The shape under which the weight is folded; convolution kernels become matrices.
        transposed: Whether the update is (B @ A) transposed: Conv1D's (in, out) weights, embeddings.
        is_square: Whether the shapes alone cannot tell; see `ckpt_tools.merging.orientation`.
    """

    matrix_shape: Shape
    transposed: bool
    is_square: bool = False


def fit_pair(pair: LoraPair, a: Shape, b: Shape, weight: Shape) -> Fit | Problem:
    """Fit an update to the weight that it was trained on.

    Args:
        pair: The update.
        a: Shape of A.
        b: Shape of B.
        weight: Shape of the weight.
    """
    wanted: Shape
    if pair.kind == "expert":
        wanted = (a[0], a[1], b[2])
        return Fit(weight, False) if weight == wanted else _misfit(pair, a, b, weight, wanted)
    if pair.kind == "embedding":
        wanted = (a[1], b[0])
        return Fit(weight, True) if weight == wanted else _misfit(pair, a, b, weight, wanted)
    if pair.kind == "conv":
        wanted = (b[0], *a[1:])
        return Fit((b[0], math.prod(a[1:])), False) if weight == wanted else _misfit(pair, a, b, weight, wanted)
    plain, transposed = (b[0], a[1]), (a[1], b[0])
    if weight == plain == transposed:
        return Fit(weight, False, is_square=True)
    if weight in (plain, transposed):
        return Fit(weight, weight == transposed)
    return _misfit(pair, a, b, weight, plain)


def term_of(pair: LoraPair, a: LazyTensor, b: LazyTensor, scaling: float, fit: Fit) -> LowRankTerm:
    """The update as a product of lazy tensors."""
    if pair.kind == "expert":
        return LowRankTerm(a, b, scaling)
    a, b = reshape(a, (pair.rank, a.size // pair.rank)), reshape(b, (b.shape[0], pair.rank))
    return LowRankTerm(Transposed(a), Transposed(b), scaling) if fit.transposed else LowRankTerm(b, a, scaling)


def _misfit(pair: LoraPair, a: Shape, b: Shape, weight: Shape, wanted: Shape) -> Problem:
    # With a square weight, A (in, rank) and B (rank, out) pass for A and B of a rank as high as the weight.
    remedy = "The adapter was trained on another base, or one of the two is a slice of a distributed run"
    if pair.kind == "linear" and a[1] == b[0] and weight in ((b[1], a[0]), (a[0], b[1])):
        remedy = "Both A and B look transposed: write them transposed"
    return Problem(
        pair.layer or pair.a,
        f"shape {weight} in the base, A {a} and B {b} in the adapter",
        f"a weight of shape {wanted}",
        remedy,
    )
