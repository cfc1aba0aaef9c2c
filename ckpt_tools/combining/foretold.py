"""What is known of a combination before it is computed: the shapes of what comes out, memory, room and threads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ckpt_tools.combining.deltas import TILE_ELEMENTS
from ckpt_tools.combining.model import Combination, Layer, Part
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Constant
from ckpt_tools.writing.memory import Budget
from surgery.errors import Problem, ResourceError

__all__ = ["matrix_shape", "peak_bytes", "scratch_bytes", "stand_ins", "threads_for", "working_bytes"]


def stand_ins(layers: Sequence[Layer], how: Combination, dtype: DType) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """What has the shapes of the combined A and B before there are any, to lay out where they will go.

    Args:
        layers: The layers, to which `layer_problems` has no objection.
        how: The method.
        dtype: The type of A and B.

    Returns:
        Name of the layer to its A and B, of rank 1 where the rank depends on the values.
    """

    def zeros(*shape: int) -> LazyTensor:
        return Constant(np.broadcast_to(np.zeros((), dtype.numpy), shape), dtype)

    made = {}
    for layer in layers:
        ranks = [part.rank for part in layer.parts]
        is_known = how.rank is None and how.energy is None
        rank = 1 if not is_known else {"cat": sum(ranks), "factors": ranks[0]}.get(how.how.of, 1)
        a, b = layer.parts[0].a.shape, layer.parts[0].b.shape
        if layer.kind == "expert":
            made[layer.name] = (zeros(*a[:2], rank), zeros(b[0], rank, *b[2:]))
        else:
            made[layer.name] = (zeros(rank, *a[1:]), zeros(b[0], rank, *b[2:]))
    return made


def working_bytes(layers: Sequence[Layer], how: Combination) -> int:
    """The anonymous memory that the largest layer takes while it is combined, at most."""
    usual = max((part.rank for layer in layers for part in layer.parts), default=0)
    return max((_layer_bytes(layer, how, usual) for layer in layers), default=0)


def peak_bytes(layers: Sequence[Layer], how: Combination, budget: Budget) -> int:
    """The anonymous memory of this process that combining takes at most, what it takes anyway included."""
    return Budget(0).peak_bytes + threads_for(layers, how, budget, None) * working_bytes(layers, how)


def scratch_bytes(layers: Sequence[Layer], how: Combination, usual: int, dtype: DType, threads: int) -> int:
    """What lies in the temporary folder: each layer's A and B, of whatever rank that is known, and deltas."""
    total, deltas = 0, []
    for layer in layers:
        experts, out, inner = _sizes(layer)
        if how.energy is not None:
            rank = 1  # at least
        else:
            rank = how.rank or (sum(part.rank for part in layer.parts) if how.how.of == "cat" else usual)
        total += experts * (out + inner) * rank * dtype.itemsize
        if how.spills:
            deltas.append(4 * out * inner)
    return total + sum(sorted(deltas)[-threads:])


def threads_for(layers: Sequence[Layer], how: Combination, budget: Budget, max_memory: int | None) -> int:
    """How many layers are combined at a time.

    Raises:
        ResourceError: The limit that the user set leaves no room for one.
    """
    largest = working_bytes(layers, how) or 1
    room = budget.peak_bytes - Budget(0).peak_bytes
    if max_memory is not None and largest > room:
        least = Budget(0).peak_bytes + largest
        raise ResourceError(
            Problem("--max-memory", f"{max_memory} bytes", f"at least {least} bytes, for the largest layer")
        )
    return max(1, min(budget.threads, room // largest))


def matrix_shape(kind: str, part: Part) -> tuple[int, ...]:
    """The shape of the weight that an update is of; of experts one behind the other."""
    if kind == "expert":
        return (part.a.shape[0], part.a.shape[1], part.b.shape[2])
    return (part.b.shape[0], *part.a.shape[1:])


def _sizes(layer: Layer) -> tuple[int, int, int]:
    """Matrices, and the rows and columns of each."""
    shape = matrix_shape(layer.kind, layer.parts[0])
    if layer.kind == "expert":
        return shape[0], shape[1], shape[2]
    return 1, shape[0], math.prod(shape[1:])


def _layer_bytes(layer: Layer, how: Combination, usual: int) -> int:
    """Both factors as they are read, in float32 and, behind each other and decomposed, some times in float64."""
    experts, out, inner = _sizes(layer)
    ranks = sum(part.rank for part in layer.parts)
    new = how.rank or (ranks if how.how.of == "cat" else usual)
    room = (out + inner) * (12 * experts * ranks + 48 * (ranks + new))
    if how.how.of == "delta" and how.how.prune:
        narrow = min(out, inner)
        tiles = (4 * len(layer.parts) + 8) * 4 * max(TILE_ELEMENTS, narrow)
        room += tiles + min(5 * narrow, 6 * (2 * new + 32)) * 8 * narrow
    return room
