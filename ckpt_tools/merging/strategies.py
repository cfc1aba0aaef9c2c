"""Merging through layouts: inputs in slices of ranks, an output cut for ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from ckpt_tools.distributed import (
    Gathered,
    Opened,
    compare_unlisted,
    iteration_facts,
    open_whole,
    plan_iteration,
    plan_ranks,
    sample_replicas,
    scatter,
)
from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.layout import Strategy, read_strategy
from ckpt_tools.progress import Progress
from ckpt_tools.writing.destination import destination
from ckpt_tools.writing.outputs import Changes, OutputOptions, default_output, plan_output
from ckpt_tools.writing.plan import Plan
from surgery.errors import MismatchError, Problem, UsageError
from surgery.naming import Role, classify
from surgery.states import split_optimizer_state

__all__ = ["MergeStrategies", "for_each", "merge_output", "plan_merged"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class MergeStrategies:
    """How the inputs of a merge are cut, and how the output is to be; None for what is whole.

    Attributes:
        source: The base's.
        adapters: One for each adapter.
        target: The output's.
        replicated: Patterns of names that the inputs' may lack, since every rank holds all of them.
    """

    source: Strategy | None
    adapters: tuple[Strategy | None, ...]
    target: Strategy | None
    replicated: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        source: PathLike | None,
        adapters: Sequence[PathLike | None],
        target: PathLike | None,
        replicated: Sequence[str] = (),
    ) -> MergeStrategies:
        """Read the strategies of a base, of its adapters and of an output.

        Args:
            source: The base's.
            adapters: One for each adapter.
            target: The output's.
            replicated: Patterns of names that the inputs' may lack, since every rank holds all of them.

        Raises:
            PetSurgeryError: As of `read_strategy`.
        """
        known: dict[PathLike | None, Strategy | None] = {None: None}
        for path in (source, *adapters, target):
            if path is not None and path not in known:
                known[path] = read_strategy(path)
        return cls(known[source], tuple(known[path] for path in adapters), known[target], tuple(replicated))

    def open(
        self, base: Path, adapters: Sequence[Path], step: str | None, progress: Progress
    ) -> tuple[Opened, list[Opened]]:
        """Open the base and the adapters as whole checkpoints.

        Args:
            base: The base.
            adapters: The adapters.
            step: Which step of the adapters, or of a base that holds both; None for the latest.
            progress: Told how far comparisons are.

        Raises:
            MismatchError: Files and strategies do not fit together, or ranks differ in what they all should hold.
            PetSurgeryError: As of `open_whole`.
        """
        steps = [None if adapters else step] + [step] * len(adapters)
        opened = self._open_each((base, *adapters), (self.source, *self.adapters), steps, progress, base_first=True)
        return opened[0], opened[1:]

    def open_adapters(self, adapters: Sequence[Path], step: str | None, progress: Progress) -> list[Opened]:
        """Open adapters alone as whole checkpoints; what is raised is as of `open`."""
        return self._open_each(adapters, self.adapters, [step] * len(adapters), progress)

    def _open_each(
        self,
        paths: Sequence[Path],
        strategies: Sequence[Strategy | None],
        steps: Sequence[str | None],
        progress: Progress,
        *,
        base_first: bool = False,
    ) -> list[Opened]:
        opened = [
            open_whole(
                path,
                strategy,
                step=step,
                replicated=self.replicated,
                may_leave_out=_is_optimizer_state,
                option="--src-strategy" if base_first and number == 0 else "--adapter-strategy",
            )
            for number, (path, strategy, step) in enumerate(zip(paths, strategies, steps, strict=True))
        ]
        differences = [problem for one in opened for problem in compare_unlisted(one.whole, progress)]
        if differences:
            raise MismatchError(differences)
        return [one.warned(sample_replicas(one.whole)) for one in opened]

    def paths(self) -> set[Path]:
        """The files and folders that were read."""
        return {strategy.path for strategy in (self.source, *self.adapters, self.target) if strategy is not None}


def _is_optimizer_state(name: str) -> bool:
    """Whether a merge leaves a tensor out anyway, so that nobody has to know how it is cut."""
    return split_optimizer_state(name) is not None


def for_each(count: int, option: str, value: Any) -> list[Any]:
    """What the user gave for each of some adapters: one value for all of them, or one for each.

    Raises:
        UsageError: There are neither.
    """
    is_one = value is None or isinstance(value, Real | str | os.PathLike)
    values = [value] if is_one else list(value) or [None]
    if len(values) == 1 and (count or values == [None]):
        return values * count
    if len(values) != count:
        expected = f"one, or one for each of {count} adapters" if count else "nothing, as there is no adapter by itself"
        raise UsageError(Problem(option, f"{len(values)} value{'s' * (len(values) > 1)}", expected))
    return values


def merge_output(
    base: Checkpoint, output: PathLike | None, format: str, target: Strategy | None, word: str = "merged"
) -> Path:
    """Where the output goes: where the user says, or into the working folder, under the base's name and a word."""
    if output is not None:
        return destination(output)
    if (target is not None or format == "iteration") and not base.is_folder:
        return Path(f"{base.path.stem}-{word}")
    return default_output(base, format, word)


def plan_merged(
    base: Opened,
    tensors: Sequence[NamedTensor],
    target: Strategy | None,
    options: OutputOptions,
    prefix: str,
    changes: Changes,
) -> Plan:
    """Lay a merge's output out, whole or for ranks.

    Args:
        base: What the output descends from; for an iteration, training scalars of it are read.
        tensors: What is written, in order.
        target: How the output is cut; None for a whole one.
        options: What the user wants.
        prefix: What the names of the ranks' files begin with.
        changes: What else has to be told.

    Raises:
        UsageError: Options contradict each other.
        MismatchError: The tensors and the target's strategy do not fit together.
    """
    whole = dict(tensors)
    scattered = None
    if target is not None:
        parts = {name: (1,) * len(tensor.shape) for name, tensor in tensors}
        listed = frozenset(name for layouts in target.stages for name in layouts)
        scattered = scatter(Gathered(whole, parts), target, may_miss=lambda name: _is_folded(name, listed))
    if options.format == "iteration":
        return plan_iteration(iteration_facts(base), whole, scattered, options, prefix, changes)
    if scattered is None:
        return plan_output(base.base, tensors, options, changes)
    return plan_ranks(base.base, whole, scattered, options, prefix, changes.metadata)


def _is_folded(name: str, names: frozenset[str]) -> bool:
    """Whether a strategy, as that of the training, lists an adapter's parameter, which the merge folds in."""
    return classify(name, names).role not in (Role.WEIGHT, Role.OPTIMIZER, Role.SCALAR)
