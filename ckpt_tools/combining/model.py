"""What is combined, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckpt_tools.tensors.lazy import LazyTensor
from surgery.combining import METHODS, Method
from surgery.errors import Problem, UsageError

__all__ = ["Combination", "Layer", "Part"]

_MAJORITIES = ("total", "frequency")


@dataclass(frozen=True, slots=True)
class Combination:
    """How adapters are combined.

    Attributes:
        method: A name among `surgery.combining.METHODS`.
        density: The share of elements that pruning keeps; 1 for methods that do not prune.
        majority_sign: How a sign is elected: `total` or `frequency`.
        seed: Of what is dropped at random.
        rank: The rank of every layer of the result; None for what the method gives.
        energy: The share of a layer's squares that its rank must keep, instead of a rank; None for all.
    """

    method: str = "cat"
    density: float = 1.0
    majority_sign: str = "total"
    seed: int = 0
    rank: int | None = None
    energy: float | None = None

    @classmethod
    def of(
        cls,
        method: str,
        density: float | None,
        majority_sign: str | None,
        seed: int | None,
        rank: int | None,
        energy: float | None,
    ) -> Combination:
        """Check what the user says, None for what nobody said.

        Raises:
            UsageError: A word is unknown, a number out of range, or an option says nothing with the method.
        """
        if method not in METHODS:
            raise UsageError(Problem("--method", method, ", ".join(METHODS)))
        known, problems = METHODS[method], []
        if known.prune and density is None:
            found, expected = f"{method} without --density", "the share of the elements to keep"
            problems.append(Problem("--method", found, expected, "Give --density, such as 0.5"))
        if density is not None and not known.prune:
            problems.append(_unused("--density", f"{density:g}", method, (m for m in METHODS if METHODS[m].prune)))
        if density is not None and not 0 < density <= 1:
            problems.append(Problem("--density", f"{density:g}", "a share above 0, and 1 at most"))
        if majority_sign is not None and majority_sign not in _MAJORITIES:
            problems.append(Problem("--majority-sign", majority_sign, " or ".join(_MAJORITIES)))
        elif majority_sign is not None and not known.elects:
            problems.append(
                _unused("--majority-sign", majority_sign, method, (m for m in METHODS if METHODS[m].elects))
            )
        if seed is not None and known.prune != "random":
            random = (m for m in METHODS if METHODS[m].prune == "random")
            problems.append(_unused("--seed", f"{seed}", method, random))
        if rank is not None and energy is not None:
            problems.append(Problem("--resize-rank and --energy", "both", "one of the two"))
        if rank is not None and rank < 1:
            problems.append(Problem("--resize-rank", f"{rank}", "a rank of 1 or more"))
        if energy is not None and not 0 < energy <= 1:
            problems.append(Problem("--energy", f"{energy:g}", "a share above 0, and 1 at most"))
        if problems:
            raise UsageError(problems)
        return cls(method, 1.0 if density is None else density, majority_sign or "total", seed or 0, rank, energy)

    @property
    def how(self) -> Method:
        """What the method does."""
        return METHODS[self.method]

    @property
    def is_sum(self) -> bool:
        """Whether the result is the sum of all updates, which needs no computing beforehand."""
        return self.method == "cat" and self.rank is None and self.energy is None

    @property
    def spills(self) -> bool:
        """Whether a layer's whole update is computed, as its result has no low rank, and kept in a file meanwhile."""
        return self.how.of == "delta" and (self.how.elects or (bool(self.how.prune) and self.density < 1))

    @property
    def words(self) -> str:
        """The method and its numbers, for people."""
        words = [self.method]
        if self.how.prune:
            words.append(f"density {self.density:g}")
        if self.how.elects:
            words.append(f"majority by {self.majority_sign}")
        if self.how.prune == "random":
            words.append(f"seed {self.seed}")
        if self.rank is not None:
            words.append(f"rank {self.rank}")
        if self.energy is not None:
            words.append(f"energy {self.energy:g}")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter's update of a layer, weight * scaling * (B @ A).

    Attributes:
        adapter: Which adapter it is of, counted from 0.
        a: `(rank, in)`; of a convolution `(rank, in, *kernel)`; of experts `(experts, in, rank)`.
        b: `(out, rank)`; of a convolution `(out, rank, 1, ...)`; of experts `(experts, rank, out)`.
        weight: The adapter's weight.
        scaling: The layer's scaling.
        rank: LoRA's rank.
    """

    adapter: int
    a: LazyTensor
    b: LazyTensor
    weight: float
    scaling: float
    rank: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and all updates of it.

    Attributes:
        name: What it is called in reports.
        kind: `linear`, `embedding`, `conv` or `expert`, as of `surgery.grouping.LoraPair`.
        parts: In the order of the adapters.
        stream: What is dropped at random is drawn for: the same whether a base is at hand or not.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    stream: str


def _unused(option: str, found: str, method: str, methods: Iterable[str]) -> Problem:
    return Problem(option, f"{found}, with --method {method}", f"a method that uses it: {', '.join(methods)}")
