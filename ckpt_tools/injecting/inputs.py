"""The inputs of an injection, opened: the base, an adapter, and the strategies of both and of the output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.distributed import Opened, compare_unlisted, open_whole, sample_replicas
from ckpt_tools.layout import Strategy, read_strategy
from ckpt_tools.progress import Progress
from surgery.errors import MismatchError, Problem, UsageError

__all__ = ["Inputs"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs, opened: base, adapter, and the strategies of both and of the output."""

    base: Opened
    adapter: Opened | None
    strategies: tuple[Strategy | None, Strategy | None, Strategy | None]
    warnings: tuple[str, ...]

    @classmethod
    def open(
        cls,
        base: Path,
        adapter: Path | None,
        strategies: tuple[PathLike | None, PathLike | None, PathLike | None],
        step: str | None,
        replicated: Sequence[str],
        progress: Progress,
    ) -> Inputs:
        if strategies[1] is not None and adapter is None:
            raise UsageError(Problem("--adapter-strategy", "no adapter", "--adapter", "Leave it out"))
        source, of_adapter, target = (None if path is None else read_strategy(path) for path in strategies)
        opened = open_whole(base, source, step=step, replicated=replicated)
        grafted = None
        if adapter is not None:
            grafted = open_whole(adapter, of_adapter, replicated=replicated, option="--adapter-strategy")
        both = [one for one in (opened, grafted) if one is not None]
        problems = [problem for one in both for problem in compare_unlisted(one.whole, progress)]
        if problems:
            raise MismatchError(problems)
        warnings = (warning for one in both for warning in (*one.base.warnings, *sample_replicas(one.whole)))
        return cls(opened, grafted, (source, of_adapter, target), tuple(warnings))

    @property
    def target(self) -> Strategy | None:
        """How the output is to be cut."""
        return self.strategies[2]

    def paths(self) -> list[Path]:
        """The files and folders that the user gave."""
        found = [self.base.base.path, *(strategy.path for strategy in self.strategies if strategy is not None)]
        return found if self.adapter is None else [*found, self.adapter.base.path]
