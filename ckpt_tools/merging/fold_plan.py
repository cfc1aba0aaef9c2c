"""What happens to each weight of a base: the outcome of planning a merge."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckpt_tools.merging.fitting import Fit
from ckpt_tools.reports import AdapterUse, CombinedLayer, DroppedTensor
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.folding import Added, DoraMerged, LowRankTerm, Merged, VectorTerm
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast, reshape
from surgery.errors import Problem
from surgery.grouping import LoraPair

__all__ = ["Fold", "FoldPlan", "FoldedPair"]


@dataclass(frozen=True, slots=True)
class FoldedPair:
    """One adapter's A and B behind a term.

    Attributes:
        adapter: Which adapter they are of, counted from 0.
        pair: What they are called.
        a: A, as the adapter has it.
        b: B, as the adapter has it.
        scaling: The layer's scaling, without the adapter's weight.
        weight: The adapter's weight.
        fit: Which way round they go.
    """

    adapter: int
    pair: LoraPair
    a: LazyTensor
    b: LazyTensor
    scaling: float
    weight: float
    fit: Fit


@dataclass(slots=True)
class Fold:
    """All that happens to one weight.

    Attributes:
        weight: The weight before; the replacement where an adapter brings one.
        uses: Each adapter's part, for the report.
        matrix_shape: The shape under which the terms are added.
        terms: Low-rank updates.
        pairs: What each term is made of.
        combination: How several terms became the one that there is; None where they are summed.
        vectors: Updates of a vector.
        magnitude: DoRA's magnitudes, and the axis that they stand along.
        is_replaced: Whether an adapter brought the weight.
        is_copy: Whether what it brought is a copy that the training made for this name alone, and no value of the
            parameter itself, which is the same under every name that the parameter is tied under.
    """

    weight: LazyTensor
    uses: list[AdapterUse] = field(default_factory=list)
    matrix_shape: tuple[int, ...] = ()
    terms: list[LowRankTerm] = field(default_factory=list)
    pairs: list[FoldedPair] = field(default_factory=list)
    combination: CombinedLayer | None = None
    vectors: list[VectorTerm] = field(default_factory=list)
    magnitude: tuple[LazyTensor, int] | None = None
    is_replaced: bool = False
    is_copy: bool = False

    @property
    def is_updated(self) -> bool:
        """Whether something is added to the weight."""
        return bool(self.terms or self.vectors)

    def result(self, dtype: DType) -> LazyTensor:
        """The weight after, in a type, rounded once."""
        if self.vectors:
            return Added(self.weight, tuple(self.vectors), dtype)
        if not self.terms:
            return self.weight if self.weight.dtype == dtype else Cast(self.weight, dtype)
        matrix = reshape(self.weight, self.matrix_shape)
        if self.magnitude is None:
            return reshape(Merged(matrix, tuple(self.terms), dtype), self.weight.shape)
        magnitude, axis = self.magnitude
        return reshape(DoraMerged(matrix, self.terms[0], magnitude, axis, dtype), self.weight.shape)


@dataclass(slots=True)
class FoldPlan:
    """What happens to a base.

    Attributes:
        folds: Base name to what happens to that weight.
        untied: Names that the base does not have and the output does, to the base's tensor that they were tied to.
        rules: What was done to each adapter's names to find the base's.
        dropped: Adapter tensors that are left out on purpose.
        warnings: What the user ought to know.
        problems: Why the merge cannot be done.
    """

    folds: dict[str, Fold] = field(default_factory=dict)
    untied: dict[str, str] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    dropped: list[DroppedTensor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
