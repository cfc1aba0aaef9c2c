"""What several updates of a matrix become by each method of combination, from its paper's definition, in float64.

task arithmetic   the weighed sum (arXiv:2212.04089, section 2)
TIES              the largest elements of each task, of which those with the majority's sign have a say: their mean
                  (arXiv:2306.01708, section 4)
DARE              elements dropped at random, the others divided by the share that is kept (arXiv:2311.03099, section 3)
SVD               the nearest matrix of a rank (Eckart and Young, 1936)

A task is a factor, A or B, of one adapter, or its whole update. A command computes in float32: what that may change of
an element is followed along, also where it may decide otherwise which element is among the largest, or which sign has
the majority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from surgery.draws import uniform_draws

FACTORS, UPDATE, CAT = "factors", "update", "cat"
MAGNITUDE, RANDOM = "magnitude", "random"

METHODS = {
    "cat": (CAT, "", False),
    "linear": (FACTORS, "", False),
    "magnitude_prune": (FACTORS, MAGNITUDE, False),
    "ties": (FACTORS, MAGNITUDE, True),
    "dare_linear": (FACTORS, RANDOM, False),
    "dare_ties": (FACTORS, RANDOM, True),
    "svd": (UPDATE, "", False),
    "magnitude_prune_svd": (UPDATE, MAGNITUDE, False),
    "ties_svd": (UPDATE, MAGNITUDE, True),
    "dare_linear_svd": (UPDATE, RANDOM, False),
    "dare_ties_svd": (UPDATE, RANDOM, True),
}
"""Name to what is combined, what is dropped of it, and whether a sign is elected."""

_UNIT = 2.0**-24  # what a rounding in float32 may change, as a share
_SMALLEST = 2.0**-149  # and where values are subnormal


@dataclass(frozen=True)
class Combination:
    """A method and its numbers; `rank` and `energy` are of the result, None for what the method gives."""

    method: str
    density: float = 1.0
    by_count: bool = False
    seed: int = 0
    rank: int | None = None
    energy: float | None = None

    @property
    def of(self) -> str:
        """What is combined."""
        return METHODS[self.method][0]

    @property
    def is_sum(self) -> bool:
        """Whether it is the plain sum."""
        return self.method == "cat" and self.rank is self.energy is None

    def options(self) -> list[str]:
        """The options that ask for it."""
        _, prune, elects = METHODS[self.method]
        options = ["--method", self.method] if self.method != "cat" else []
        options += ["--density", repr(self.density)] if prune else []
        options += ["--majority-sign", "frequency"] if self.by_count and elects else []
        options += ["--seed", str(self.seed)] if prune == RANDOM else []
        options += ["--resize-rank", str(self.rank)] if self.rank is not None else []
        return options + (["--energy", repr(self.energy)] if self.energy is not None else [])


@dataclass(frozen=True)
class Update:
    """scaling * (left @ right) of one adapter, which is weighed; float64, `(out, rank)` and `(rank, in)`."""

    adapter: int
    left: np.ndarray
    right: np.ndarray
    scaling: float
    weight: float


@dataclass(frozen=True)
class Product:
    """What comes out, left @ right.

    Attributes:
        left, right: `(out, rank)` and `(rank, in)`.
        off_left, off_right: How far each of their elements may be off; None where only the product is known.
        off: How far each element of the product may be off.
        ranks: The least and the highest rank that it may have.
    """

    left: np.ndarray
    right: np.ndarray
    off_left: np.ndarray | None
    off_right: np.ndarray | None
    off: np.ndarray
    ranks: tuple[int, int]


def random_combination(rng: Random, method: str | None = None) -> Combination:
    """A method, with any of its numbers."""
    method = method or rng.choice(list(METHODS))
    density, by_count, seed = rng.choice([0.2, 0.5, 0.7, 0.95, 1.0]), rng.random() < 0.5, rng.randint(0, 9)
    rank, energy = rng.choice([(None, None), (None, None), (rng.choice([1, 2, 3, 6]), None), (None, 0.9), (None, 0.55)])
    return Combination(method, density if METHODS[method][1] else 1.0, by_count, seed, rank, energy)


def combined(updates: Sequence[Update], how: Combination, usual_rank: int, stream: str, number: int = 0) -> Product:
    """Updates of one matrix to one.

    Args:
        updates: In the order of the adapters.
        how: The method.
        usual_rank: The highest rank of all adapters, which what is decomposed keeps.
        stream: What is dropped at random is drawn for: the layer, as Hugging Face calls it.
        number: Which matrix of the layer it is, where it has several.
    """
    streams = [f"{stream} {update.adapter} {number}" for update in updates]
    if how.of == FACTORS:
        roots = [np.sqrt(abs(one.weight * one.scaling)) for one in updates]
        signed = [np.copysign(root, one.weight * one.scaling) for root, one in zip(roots, updates, strict=True)]
        exact = [np.zeros(()) for _ in updates]
        right = _together([one.right for one in updates], exact, signed, how, [f"{one} A" for one in streams])
        left = _together([one.left for one in updates], exact, roots, how, [f"{one} B" for one in streams])
        product = _of_factors(left, right)
        return product if how.rank is how.energy is None else _cut(product.left @ product.right, product.off, how, None)
    if how.of == CAT or not METHODS[how.method][1]:
        lefts = np.concatenate([one.left for one in updates], axis=1)
        rights = np.concatenate([one.weight * one.scaling * one.right for one in updates])
        off = 3 * _UNIT * (np.abs(lefts) @ np.abs(rights))
        if how.is_sum:
            return Product(lefts, rights, None, None, off, (len(rights), len(rights)))
        return _cut(lefts @ rights, off, how, usual_rank if how.of == UPDATE else None)
    tasks = [one.scaling * (one.left @ one.right) for one in updates]
    offs = [(len(one.right) + 3) * _UNIT * abs(one.scaling) * (np.abs(one.left) @ np.abs(one.right)) for one in updates]
    weights = [one.weight for one in updates]
    # Elements are counted, and drawn for, row by row of the update that lies upright.
    turn = tasks[0].shape[0] < tasks[0].shape[1]
    if turn:
        tasks, offs = [task.T for task in tasks], [off.T for off in offs]
    values, off = _together(tasks, offs, weights, how, streams)
    noise = 2.0**-23 * np.linalg.norm(values, 2) / np.sqrt(values.size)  # the decomposition has a floor
    return _cut(*((values.T, off.T + noise) if turn else (values, off + noise)), how, usual_rank)


_Bounded = tuple[np.ndarray, np.ndarray]


def _together(
    tasks: Sequence[np.ndarray],
    offs: Sequence[np.ndarray],
    weights: Sequence[float],
    how: Combination,
    streams: Sequence[str],
) -> _Bounded:
    """Tasks, each with what its elements may be off, to one."""
    _, prune, elects = METHODS[how.method]
    values, off = np.stack(tasks), np.stack([np.broadcast_to(one, tasks[0].shape) for one in offs])
    if prune == MAGNITUDE and how.density < 1:
        pruned = [_largest(*one, how.density) for one in zip(values, off, strict=True)]
        values, off = (np.stack([one[place] for one in pruned]) for place in (0, 1))
    if prune == RANDOM and how.density < 1:
        kept = np.stack([uniform_draws(how.seed, stream, 0, tasks[0].size) for stream in streams]) < how.density
        kept = kept.reshape(values.shape)
        values, off = kept * values / how.density, kept * off / how.density
    factors = np.reshape(weights, (-1, *[1] * tasks[0].ndim))
    weighed = factors * values
    magnitude = np.abs(weighed).sum(axis=0)
    lost = np.sum(np.abs(factors) * off, axis=0) + (len(tasks) + 6) * (_UNIT * magnitude + _SMALLEST)
    if not elects:
        return weighed.sum(axis=0), lost
    signs = np.sign(values)
    poll = (signs if how.by_count else values).sum(axis=0)
    majority = np.where(poll >= 0, 1, -1)
    agree = signs == majority
    mean = (agree * weighed).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
    poll_off = off.sum(axis=0) + (0 if len(tasks) < 3 else 2 * _UNIT * np.abs(values).sum(axis=0))
    is_open = (np.abs(values) <= off) & (off > 0)
    is_open = is_open.any(axis=0) | ((np.abs(poll) <= poll_off) & (poll_off > 0) & (not how.by_count))
    return mean, lost + np.where(is_open, magnitude + lost, 0)


def _largest(values: np.ndarray, off: np.ndarray, density: float) -> _Bounded:
    """The share of the largest elements, of equal ones the first; all others 0."""
    count = int(density * values.size)
    sizes, slack = np.abs(values).reshape(-1), off.reshape(-1)
    order = np.argsort(-sizes, kind="stable")
    kept = np.zeros(values.size, np.bool_)
    kept[order[:count]] = True
    least = np.min((sizes - slack)[kept], initial=np.inf)
    most = np.max((sizes + slack)[~kept], initial=-np.inf)
    is_open = np.where(kept, sizes - slack <= most, sizes + slack >= least) & (slack > 0)
    wide = np.where(is_open, sizes + slack, np.where(kept, slack, 0))
    return np.where(kept.reshape(values.shape), values, 0), wide.reshape(values.shape)


def _of_factors(left: _Bounded, right: _Bounded) -> Product:
    (near_left, off_left), (near_right, off_right) = left, right
    off = off_left @ np.abs(near_right) + np.abs(near_left) @ off_right + off_left @ off_right
    rank = len(near_right)
    return Product(near_left, near_right, off_left, off_right, off, (rank, rank))


def _cut(values: np.ndarray, off: np.ndarray, how: Combination, usual_rank: int | None) -> Product:
    """The nearest matrix of a rank, and how far it may be from that of a matrix that is off by so much.

    To first order the nearest matrix moves by no more than s[k] / (s[k] - s[k + 1]) times as much as the matrix does;
    and any two that are that near to it are not farther apart than twice what was cut off.
    """
    u, s, vt = np.linalg.svd(values, full_matrices=False)
    moved = float(np.linalg.norm(off))
    whole = float(np.linalg.norm(s))
    if how.energy is None:
        wanted = how.rank if how.rank is not None else usual_rank
        assert wanted is not None
        least = rank = wanted
    else:
        shares = np.cumsum(s**2) / (whole**2 or 1.0)
        doubt = 1e-5 + 2 * moved / (whole or 1.0)
        least, rank = (
            min(int(np.searchsorted(shares, how.energy + side)) + 1, len(s)) if whole else len(s)
            for side in (-doubt, doubt)
        )
        least = least if whole else 1
    k = min(rank, len(s))
    rest = float(np.linalg.norm(s[min(least, k) :]))
    gap = s[k - 1] - (s[k] if k < len(s) else 0.0)
    far = 2 * rest + 4 * moved
    if least == rank and gap > 4 * moved:
        far = min(far, 2 * moved * s[k - 1] / gap)
    # Both factors are rounded to float32.
    far += 8 * np.sqrt(k) * (_UNIT * float(np.linalg.norm(s[:k])) + _SMALLEST)
    return Product(u[:, :k] * s[:k], vt[:k], None, None, np.full(values.shape, far), (least, rank))
