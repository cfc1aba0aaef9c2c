"""One layer's updates to one A and B, in arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_tools.combining.deltas import CombinedDelta, combine_tasks
from ckpt_tools.combining.model import Combination
from surgery.combining import drop_and_rescale, magnitude_cut, split_factor, trim
from surgery.draws import uniform_draws
from surgery.leading import leading_singular
from surgery.lowrank import energy_by_rank, inner_products, product_distance, product_svd

__all__ = ["Factors", "MatrixPart", "combine_matrices"]


@dataclass(frozen=True, slots=True)
class MatrixPart:
    """One adapter's update of a matrix, factor * (left @ right).

    Attributes:
        left: `(out, rank)`, float32.
        right: `(rank, in)`, float32.
        weight: The adapter's weight.
        scaling: The layer's scaling.
        stream: What is dropped at random is drawn for.
    """

    left: np.ndarray
    right: np.ndarray
    weight: float
    scaling: float
    stream: str

    @property
    def factor(self) -> float:
        """What left @ right is multiplied with."""
        return self.weight * self.scaling


@dataclass(frozen=True, slots=True)
class Factors:
    """The combined update of a matrix, left @ right, and what is known of it.

    Attributes:
        left: `(out, rank)`, float32.
        right: `(rank, in)`, float32.
        energy: The share of the sum of squares of what the method gives that the rank keeps.
        error: The distance of left @ right from what the method gives, in the Frobenius norm.
        norm: The Frobenius norm of what the method gives.
        sum_distance: The distance of left @ right from the plain sum of all updates.
        sum_norm: The norm of that sum.
        converged: Whether the decomposition did.
    """

    left: np.ndarray
    right: np.ndarray
    energy: float
    error: float
    norm: float
    sum_distance: float
    sum_norm: float
    converged: bool = True


def combine_matrices(
    parts: Sequence[MatrixPart],
    how: Combination,
    usual_rank: int,
    round_to: Callable[[np.ndarray], np.ndarray],
    folder: Path,
) -> Factors:
    """Combine one matrix' updates.

    Args:
        parts: The updates, in order.
        how: The method.
        usual_rank: The rank of what is decomposed, where neither a rank nor an energy is asked for.
        round_to: Rounds factors to the type that they are stored in.
        folder: Where a delta that is not of low rank may be kept meanwhile.
    """
    total_left = np.concatenate([part.left for part in parts], axis=1)
    total_right = np.concatenate([part.right * np.float32(part.factor) for part in parts], axis=0)
    if how.spills:
        return _of_delta(parts, how, usual_rank, round_to, folder, (total_left, total_right))
    if how.how.of == "factors":
        left, right = _of_factors(parts, how)
    else:
        left, right = total_left, total_right
    wanted = usual_rank if how.how.of == "delta" and how.energy is None else None
    rank = how.rank if how.rank is not None else wanted
    if rank is None and how.energy is None:
        new_left, new_right, energy = left, right, 1.0
    else:
        new_left, new_right, energy = _resized(left, right, rank, how.energy, how.seed)
    new_left, new_right = round_to(new_left), round_to(new_right)
    error, norm = product_distance(left, right, new_left, new_right), _norm(left, right)
    if left is total_left:
        return Factors(new_left, new_right, energy, error, norm, error, norm)
    distance = product_distance(total_left, total_right, new_left, new_right)
    return Factors(new_left, new_right, energy, error, norm, distance, _norm(total_left, total_right))


def _of_factors(parts: Sequence[MatrixPart], how: Combination) -> tuple[np.ndarray, np.ndarray]:
    """A and B combined apart, as PEFT's methods without `svd` do it."""
    roots = [split_factor(part.factor) for part in parts]
    rights = [_pruned(part.right, f"{part.stream} A", how) for part in parts]
    lefts = [_pruned(part.left, f"{part.stream} B", how) for part in parts]
    right = combine_tasks(np.stack(rights), [root for root, _ in roots], how)
    left = combine_tasks(np.stack(lefts), [root for _, root in roots], how)
    return left, right


def _pruned(task: np.ndarray, stream: str, how: Combination) -> np.ndarray:
    if how.density >= 1 or not how.how.prune:
        return task
    if how.how.prune == "random":
        return drop_and_rescale(task, uniform_draws(how.seed, stream, 0, task.size), how.density)
    return trim(task, magnitude_cut(lambda: (task,), int(how.density * task.size)))


def _of_delta(
    parts: Sequence[MatrixPart],
    how: Combination,
    usual_rank: int,
    round_to: Callable[[np.ndarray], np.ndarray],
    folder: Path,
    total: tuple[np.ndarray, np.ndarray],
) -> Factors:
    """The whole delta combined and decomposed, as PEFT's methods with `svd` do it."""
    delta = CombinedDelta(
        [part.left for part in parts],
        [part.right for part in parts],
        [part.scaling for part in parts],
        [part.weight for part in parts],
        [part.stream for part in parts],
        how,
    )
    matrix = delta.spill(folder)
    rank = how.rank if how.rank is not None else None if how.energy is not None else usual_rank
    found = leading_singular(matrix, rank=rank, energy=how.energy or 1.0, seed=how.seed)
    energy = float(np.sum(found.values**2)) / found.total if found.total else 1.0
    left, right = (found.left, found.right) if not delta.is_transposed else _swapped(found.left, found.right)
    left, right = _padded(left, right, left.shape[1] if rank is None else rank, how.seed)
    left, right = map(round_to, _canonical(left, right))
    narrow_left, narrow_right = (right.T, left.T) if delta.is_transposed else (left, right)
    error = _distance(matrix, narrow_left, narrow_right)
    distance = product_distance(*total, left, right)
    return Factors(
        left, right, min(energy, 1.0), error, math.sqrt(found.total), distance, _norm(*total), found.converged
    )


def _swapped(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (U S) V^T, which is the delta transposed, the delta's own (V S) and U^T."""
    values = np.sqrt(np.einsum("ij,ij->j", left, left, dtype=np.float64))
    safe = np.where(values > 0, values, 1.0)
    return (right.T * values).astype(np.float32), np.ascontiguousarray((left / safe).T, np.float32)


def _resized(
    left: np.ndarray, right: np.ndarray, rank: int | None, energy: float | None, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """A product at another rank: U S and V^T of its largest singular values, and the energy that they have."""
    u, values, vt = product_svd(left, right)
    shares = energy_by_rank(values)
    if rank is None:
        assert energy is not None
        rank = min(int(np.searchsorted(shares, energy * (1 - 1e-12))) + 1, len(values))
    kept = min(rank, len(values))
    new_left, new_right = _canonical(u[:, :kept] * values[:kept], vt[:kept])
    new_left, new_right = _padded(new_left.astype(np.float32), new_right.astype(np.float32), rank, seed)
    return new_left, new_right, float(shares[kept - 1])


def _canonical(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product with signs that do not depend on the library: the largest element of a row of A is positive."""
    largest = np.take_along_axis(right, np.argmax(np.abs(right), axis=1)[:, None], axis=1)
    signs = np.where(largest < 0, -1, 1).astype(right.dtype)
    return left * signs.T, right * signs


def _padded(left: np.ndarray, right: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same product at a higher rank: zeros in B, and in A directions that are not in it yet, for more training.

    Args:
        left: `(out, rank before)`.
        right: `(rank before, in)`, whose rows are orthonormal.
        rank: The rank after.
        seed: What the directions are drawn by.
    """
    missing = rank - right.shape[0]
    if missing <= 0:
        return left, right
    columns = right.shape[1]
    more = np.random.Generator(np.random.PCG64(seed)).standard_normal((columns, missing))
    if rank <= columns:
        taken = right.T.astype(np.float64)
        for _ in range(2):  # once leaves what rounding adds
            more -= taken @ (taken.T @ more)
        more = np.linalg.qr(more)[0]
    else:
        more /= np.linalg.norm(more, axis=0)  # more directions than there are: they cannot all be new
    wide = np.zeros((left.shape[0], rank), np.float32)
    wide[:, : left.shape[1]] = left
    return wide, np.concatenate([right, more.T.astype(np.float32)], axis=0)


def _distance(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    rows, total = max(2**20 // matrix.shape[1], 1), 0.0
    for start in range(0, matrix.shape[0], rows):
        rest = matrix[start : start + rows] - left[start : start + rows] @ right
        total += float(np.einsum("ij,ij->", rest, rest, dtype=np.float64))
    return math.sqrt(total)


def _norm(left: np.ndarray, right: np.ndarray) -> float:
    return math.sqrt(max(float(inner_products([left], [right], [1.0])[0, 0]), 0.0))
