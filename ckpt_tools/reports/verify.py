"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.reports.base import DroppedTensor, Report
from ckpt_tools.reports.merge import AdapterReport, AdapterUse

__all__ = ["Offender", "VerifiedWeight", "VerifyReport"]


@dataclass(frozen=True, slots=True)
class Offender:
    """One thing that is not as it must be.

    Attributes:
        where: The tensor.
        found: What is there.
        expected: What must be there.
        remedy: What to do about it; may be empty.
    """

    where: str
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True, slots=True)
class VerifiedWeight:
    """One weight that adapters changed.

    Attributes:
        name: Its name in the merged checkpoint.
        base_name: Its name in the base.
        shape: Its shape.
        dtype: Its element type in the merged checkpoint.
        adapters: What must have gone in.
        elements: Elements that were compared.
        beyond: Elements that are further from the exact value than is allowed.
        error_ulp: The largest error, in units in the last place of the exact value; None of a replaced weight.
        error_at: The index of that element.
        error_of_limit: The largest error in shares of the element's limit: 1 at most where all is well.
        unchanged_share: Share of the elements, 0 to 1, that are the base's in the type of the merged checkpoint.
        swamped_share: Share of those that are so though the adapter changes them: it is less than half a unit.
        relative_delta: Norm of the exact change over the norm of the weight.
        fitted: How many times the exact change is in the weight, by least squares: 1 where all is well.
    """

    name: str
    base_name: str
    shape: tuple[int, ...]
    dtype: str
    adapters: tuple[AdapterUse, ...]
    elements: int
    beyond: int
    error_ulp: float | None = None
    error_at: tuple[int, ...] | None = None
    error_of_limit: float | None = None
    unchanged_share: float | None = None
    swamped_share: float | None = None
    relative_delta: float | None = None
    fitted: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(Report):
    """What `verify` found.

    Attributes:
        base: The base's path.
        merged: The path of what was verified.
        adapters: The adapters that must be in it.
        passed: Whether all is as it must be.
        strict: Whether it was held to the arithmetic of pet-merge.
        max_ulp: The limit that was set instead; None where there was none.
        names: How the names of the merged checkpoint follow from the base's: `keep`, `hf`, `mindformers` or a file.
        weights: Every weight that the adapters change or bring.
        equal: Tensors with the base's bytes.
        cast: Tensors that are the base's, rounded to another type.
        dropped: Tensors of the inputs that are rightly not in it.
        offenders: What is not as it must be.
        largest_error_ulp: The largest error of all weights; None without any.
        sample: The share of each tensor that was asked for.
        seed: What the sample was drawn by.
        sampled_share: The share of all elements that were compared.
        chance_of_one_percent: The chance, at least, of finding a fault that is in one of a hundred stretches.
        chance_of_one_element: The chance of finding a single wrong element.
    """

    base: str
    merged: str
    adapters: tuple[AdapterReport, ...]
    passed: bool
    strict: bool
    max_ulp: float | None
    names: str
    weights: tuple[VerifiedWeight, ...]
    equal: tuple[str, ...]
    cast: tuple[str, ...]
    dropped: tuple[DroppedTensor, ...]
    offenders: tuple[Offender, ...]
    largest_error_ulp: float | None
    sample: float
    seed: int
    sampled_share: float
    chance_of_one_percent: float
    chance_of_one_element: float
    command: str = "verify"
