"""Combining several adapters into one: a formula a function, on arrays.

The methods are those of PEFT's `LoraModel.add_weighted_adapter` (0.21, `peft/utils/merge_utils.py`), which these
functions are tested against. A task tensor is a factor, A or B, of a layer in one adapter, or the layer's whole update;
tasks are stacked along the first axis. The arithmetic is in the tensors' type, float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "METHODS",
    "MagnitudeCut",
    "Method",
    "disjoint_mean",
    "drop_and_rescale",
    "elect_signs",
    "magnitude_cut",
    "split_factor",
    "task_arithmetic",
    "trim",
]


@dataclass(frozen=True, slots=True)
class Method:
    """How adapters are combined.

    Attributes:
        of: What is combined: `factors`, A and B apart; `delta`, the whole update, which becomes A and B again by its
            largest singular values; or `cat`, A and B one behind the other, which is the exact sum.
        prune: Which elements of a task are dropped first: none, the smallest (`magnitude`) or any (`random`).
        elects: Whether tasks that disagree with the majority's sign have no say in an element.
    """

    of: str
    prune: str = ""
    elects: bool = False


METHODS = {
    "cat": Method("cat"),
    "linear": Method("factors"),
    "svd": Method("delta"),
    "ties": Method("factors", "magnitude", elects=True),
    "ties_svd": Method("delta", "magnitude", elects=True),
    "dare_linear": Method("factors", "random"),
    "dare_linear_svd": Method("delta", "random"),
    "dare_ties": Method("factors", "random", elects=True),
    "dare_ties_svd": Method("delta", "random", elects=True),
    "magnitude_prune": Method("factors", "magnitude"),
    "magnitude_prune_svd": Method("delta", "magnitude"),
}
"""Every method by its name."""


def split_factor(factor: float) -> tuple[float, float]:
    """What A and B are multiplied with so that their product is multiplied with a factor; A takes the sign.

    Args:
        factor: The adapter's weight times its scaling.

    Returns:
        `sign(f) * sqrt(abs(f))`, of A, and `sqrt(abs(f))`, of B.
    """
    root = math.sqrt(abs(factor))
    return math.copysign(root, factor), root


def task_arithmetic(tasks: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Sum of w_i t_i: Ilharco et al., "Editing models with task arithmetic", arXiv:2212.04089, section 2.

    Args:
        tasks: `(tasks, ...)`.
        weights: One of each task.
    """
    total = tasks[0] * tasks.dtype.type(weights[0])
    for task, weight in zip(tasks[1:], weights[1:], strict=True):
        total += task * task.dtype.type(weight)
    return total


@dataclass(frozen=True, slots=True)
class MagnitudeCut:
    """Which elements of a tensor are the largest ones.

    Attributes:
        bits: The bit pattern of the smallest magnitude that is kept, as a float32's; larger than any if none is.
        ties_until: Of the elements with just that magnitude those are kept whose place, in C order, is before this.
    """

    bits: int
    ties_until: int


def magnitude_cut(tiles: Callable[[], Iterable[np.ndarray]], count: int) -> MagnitudeCut:
    """Find the `count` elements of the largest magnitude; among equal ones the first in C order.

    Magnitudes of float32 are in the order of their bit patterns, so counting the upper halves of these and then the
    lower halves within one upper half finds the smallest one that is kept, in two passes and without sorting.

    Args:
        tiles: Makes the tensor's values anew at each call, float32, in pieces that follow each other in C order.
        count: How many are kept.
    """
    if count <= 0:
        return MagnitudeCut(1 << 32, 0)
    upper = np.zeros(1 << 16, np.int64)
    for tile in tiles():
        upper += np.bincount(_magnitude_bits(tile) >> np.uint32(16), minlength=1 << 16)
    high, above = _bucket_of(upper, count)
    lower = np.zeros(1 << 16, np.int64)
    for tile in tiles():
        bits = _magnitude_bits(tile)
        inside = bits[bits >> np.uint32(16) == high] & np.uint32(0xFFFF)
        lower += np.bincount(inside, minlength=1 << 16)
    low, above_low = _bucket_of(lower, count - above)
    threshold, wanted = (high << 16) | low, count - above - above_low
    if wanted == lower[low]:
        return MagnitudeCut(threshold, int(upper.sum()))
    start = 0
    for tile in tiles():
        places = np.flatnonzero(_magnitude_bits(tile) == threshold)
        if wanted <= places.size:
            return MagnitudeCut(threshold, start + int(places[wanted - 1]) + 1)
        wanted -= places.size
        start += tile.size
    raise AssertionError("the tiles are other ones at each call")


def trim(tile: np.ndarray, cut: MagnitudeCut, start: int = 0) -> np.ndarray:
    """A task with all but its largest elements set to 0.

    "Trim" of TIES: Yadav et al., "TIES-Merging", arXiv:2306.01708, section 4.

    Args:
        tile: Values, float32, which follow each other in C order.
        cut: Which are the largest of the whole task.
        start: The place of the first one, in C order.
    """
    bits = _magnitude_bits(tile)
    kept = bits >= cut.bits
    if cut.ties_until < start + tile.size:
        ties = np.flatnonzero(bits == cut.bits)
        kept[ties[ties + start >= cut.ties_until]] = False
    return np.where(kept.reshape(tile.shape), tile, tile.dtype.type(0))


def drop_and_rescale(task: np.ndarray, draws: np.ndarray, density: float) -> np.ndarray:
    """A task of which elements were dropped at random, and the others divided by the share that was kept.

    DARE: Yu et al., "Language models are super Mario", arXiv:2311.03099, section 3, with density = 1 - p.

    Args:
        task: Values.
        draws: A number of the open interval (0, 1) for each: what is below the density is kept.
        density: The share to keep.
    """
    kept = np.where(draws.reshape(task.shape) < density, task, task.dtype.type(0))
    kept /= task.dtype.type(density)
    return kept


def elect_signs(tasks: np.ndarray, majority: str) -> np.ndarray:
    """Which elements of which task agree with the majority's sign: "elect" of TIES, arXiv:2306.01708, section 4.

    An element of 0 agrees with nobody; where the sum is 0 the majority is positive.

    Args:
        tasks: `(tasks, ...)`, not weighed.
        majority: `total`: the sign of the sum; `frequency`: the sign that more tasks have.

    Returns:
        `(tasks, ...)`, bool.
    """
    total = (tasks if majority == "total" else np.sign(tasks)).sum(axis=0)
    return np.where(total >= 0, tasks > 0, tasks < 0)


def disjoint_mean(tasks: np.ndarray, weights: Sequence[float], agree: np.ndarray) -> np.ndarray:
    """The mean of w_i t_i over the tasks that agree: "disjoint merge" of TIES, arXiv:2306.01708, section 4.

    Args:
        tasks: `(tasks, ...)`.
        weights: One of each task.
        agree: `(tasks, ...)`, bool.

    Returns:
        `(...)`; 0 where no task agrees.
    """
    total = task_arithmetic(np.where(agree, tasks, tasks.dtype.type(0)), weights)
    total /= np.maximum(agree.sum(axis=0), 1).astype(total.dtype)
    return total


def _magnitude_bits(values: np.ndarray) -> np.ndarray:
    """The bit patterns of float32 magnitudes, `(elements,)`."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint32) & np.uint32(0x7FFFFFFF)


def _bucket_of(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bucket that holds the `wanted`-th largest, and how many lie in the buckets above it."""
    from_above = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_above, wanted))
    bucket = len(counts) - 1 - position
    return bucket, int(from_above[position] - counts[bucket])
