"""Whole tensors cut for the ranks of a target: what each rank's file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ckpt_tools.distributed.gathering import Gathered
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.layout.model import Strategy
from ckpt_tools.layout.slices import regions_of
from ckpt_tools.tensors.lazy import LazyTensor, Region
from ckpt_tools.tensors.views import Sliced
from surgery.errors import MismatchError, Problem
from surgery.near import near_names
from surgery.states import is_training_scalar, split_optimizer_state

__all__ = ["Scattered", "scatter"]

_MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class Scattered:
    """What the ranks of a target hold.

    Attributes:
        stages: For each stage, name to the rectangle that each of its ranks holds; None for all of the tensor.
        strategy: The target's strategy.
        parts: Name to the number of parts on each axis.
        dropped: Names of the source that the target has no place for.
        missing: Names of the target that the source does not have.
    """

    stages: tuple[Mapping[str, tuple[Region | None, ...]], ...]
    strategy: Strategy
    parts: Mapping[str, tuple[int, ...]]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]

    def tensors(self, rank: int, tensors: Mapping[str, LazyTensor]) -> Iterator[NamedTensor]:
        """What one rank holds, in the order of the whole tensors."""
        held = self.stages[self.strategy.stage_of(rank)]
        number = rank % self.strategy.stage_devices
        for name, tensor in tensors.items():
            if name in held:
                region = held[name][number]
                yield name, tensor if region is None else Sliced(tensor, region)


def scatter(
    source: Gathered,
    strategy: Strategy,
    *,
    may_drop: Callable[[str], bool] = lambda name: False,
    may_miss: Callable[[str], bool] = lambda name: False,
) -> Scattered:
    """Cut whole tensors as a strategy says.

    Args:
        source: The whole tensors.
        strategy: How to cut them.
        may_drop: Whether a tensor that the target has no layout for may be left out.
        may_miss: Whether a parameter of the target that the source lacks may be missing.

    Raises:
        MismatchError: Tensors and strategy do not fit together; all problems at once.
    """
    work = _Scattering(source, strategy)
    for name in source.tensors:
        work.place(name, may_drop)
    work.find_missing(may_miss)
    return work.result()


@dataclass(slots=True)
class _Scattering:
    source: Gathered
    strategy: Strategy
    stages: list[dict[str, tuple[Region | None, ...]]] = field(init=False)
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unplaced: bool = False

    def __post_init__(self) -> None:
        self.stages = [{} for _ in self.strategy.stages]

    def place(self, name: str, may_drop: Callable[[str], bool]) -> None:
        listed = [number for number, layouts in enumerate(self.strategy.stages) if name in layouts]
        tensor = self.source.tensors[name]
        for number in listed:
            layout = self.strategy.stages[number][name]
            try:
                parts, self.stages[number][name] = regions_of(layout, tensor.shape)
            except MismatchError as error:
                self.problems += [replace(problem, where=name) for problem in error.problems]
                continue
            self.parts.setdefault(name, parts)
        if listed:
            return
        if name in self.source.unlisted or is_training_scalar(name) or tensor.size == 1:
            for held in self.stages:
                held[name] = (None,) * self.strategy.stage_devices
            self.parts[name] = (1,) * len(tensor.shape)
        elif split_optimizer_state(name, self.source.tensors) or may_drop(name):
            self.dropped.append(name)
        else:
            known = [other for layouts in self.strategy.stages for other in layouts]
            remedy = "Accept it with --allow-unused PATTERN"
            if not self.unplaced:
                remedy = (
                    "If the strategy leaves frozen parameters out, save it again with "
                    f"parallel.strategy_ckpt_config.only_trainable_params: False. {remedy}"
                )
            self.unplaced = True
            self._add_problem(f"{name}: no layout in the target's strategy", name, known, remedy)

    def find_missing(self, may_miss: Callable[[str], bool]) -> None:
        names = dict.fromkeys(name for layouts in self.strategy.stages for name in layouts)
        for name in names:
            if name in self.source.tensors:
                continue
            self.missing.append(name)
            if not (is_training_scalar(name) or split_optimizer_state(name, names) or may_miss(name)):
                remedy = "Accept it with --allow-missing PATTERN"
                self._add_problem(f"{name}: not in the source", name, list(self.source.tensors), remedy)

    def _refuse_another_model(self) -> None:
        """Say once, rather than of each name, that the strategy speaks of other names than the source."""
        listed = dict.fromkeys(name for layouts in self.strategy.stages for name in layouts)
        strange = [name for name in listed if name not in self.source.tensors]
        unknown = [name for name in self.source.tensors if name not in listed and not is_training_scalar(name)]
        # Models of two families may well share a name, as `lm_head.weight`.
        if unknown and len(strange) > 0.9 * len(listed):
            found = f"layouts of {strange[0]} and others that the source lacks, none of {unknown[0]} and others of it"
            remedy = "Translate the names with --names, or give the strategy of this model"
            raise MismatchError(Problem(str(self.strategy.path), found, "the layouts of the source's tensors", remedy))

    def _add_problem(self, found: str, name: str, known: list[str], remedy: str) -> None:
        # Finding near names takes a while, and those beyond the limit are not told.
        near = near_names(name, known) if len(self.problems) < _MAX_PROBLEMS else []
        likely = f"Is it {' or '.join(near)}? " if near else ""
        self.problems.append(Problem(str(self.strategy.path), found, remedy=f"{likely}{remedy}"))

    def result(self) -> Scattered:
        if self.problems:
            self._refuse_another_model()
            more = len(self.problems) - _MAX_PROBLEMS
            rest = [Problem(str(self.strategy.path), f"{more} more problems of these kinds")] if more > 0 else []
            raise MismatchError([*self.problems[:_MAX_PROBLEMS], *rest])
        return Scattered(tuple(self.stages), self.strategy, self.parts, tuple(self.dropped), tuple(self.missing))
