"""What is inspected: any checkpoint, slices of ranks without a strategy among them, or a strategy alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.distributed.gathering import Gathered
from ckpt_tools.distributed.opening import Opened, open_whole
from ckpt_tools.formats import Checkpoint, is_iteration
from ckpt_tools.formats.ranks import is_rank_folder, rank_steps, read_rank_folder
from ckpt_tools.layout import Strategy, is_strategy, read_strategy
from surgery.errors import Problem, UsageError

__all__ = ["Subject", "open_subject", "read_strategy_of"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What was opened; no tensor's content was read.

    Attributes:
        path: What the user gave.
        kind: `file`, `folder`, `ranks`, `iteration` or `strategy`.
        opened: The checkpoint; of ranks without a strategy the file of rank 0. None of a strategy.
        strategy: How it is cut, or the strategy itself.
        sliced: Whether the tensors are slices.
        steps: The steps that all ranks have.
        warnings: What is odd, a sentence each.
    """

    path: Path
    kind: str
    opened: Opened | None = None
    strategy: Strategy | None = None
    sliced: bool = False
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_strategy_of(path: str | os.PathLike[str] | None, option: str) -> Strategy | None:
    """The strategy that an option names; None where it names none.

    Raises:
        PetSurgeryError: As of `read_strategy`.
    """
    if path is None:
        return None
    if not str(path):
        raise UsageError(Problem(option, "an empty path", "a strategy file or folder"))
    return read_strategy(path)


def open_subject(
    path: Path,
    strategy: Strategy | None,
    *,
    step: str | None = None,
    replicated: Sequence[str] = (),
    option: str = "--src-strategy",
) -> Subject:
    """Open what is inspected.

    Args:
        path: A checkpoint of any form, or a strategy.
        strategy: How ranks' files are cut; None for another form, and for slices as they are.
        step: Which step of ranks' files, or the number of an iteration; by default the latest that all have.
        replicated: Patterns of names that the strategy may lack, since every rank holds all of them.
        option: What the user gives the strategy with.

    Raises:
        UsageError: A strategy for what is not cut, or a step of what has none.
        PetSurgeryError: As of `open_whole`, `read_rank_folder` and `read_strategy`.
    """
    if is_rank_folder(path) and not is_iteration(path):
        return _open_ranks(path, strategy, step, replicated, option)
    # An iteration that pet-inject wrote has its strategy beside it.
    if not is_iteration(path) and is_strategy(path):
        if strategy is not None or step is not None:
            given = option if strategy is not None else "--step"
            raise UsageError(Problem(given, "with a strategy", "a checkpoint", f"Leave {given} out"))
        return Subject(path, "strategy", strategy=read_strategy(path))
    opened = open_whole(
        path, strategy, step=step, replicated=replicated, may_leave_out=lambda name: True, option=option
    )
    kind = "iteration" if opened.iteration is not None else "folder" if opened.base.is_folder else "file"
    return Subject(path, kind, opened, strategy, warnings=_left_out(opened))


def _open_ranks(
    path: Path, strategy: Strategy | None, step: str | None, replicated: Sequence[str], option: str
) -> Subject:
    steps, is_same = rank_steps(path)
    warnings: tuple[str, ...] = ()
    if step is None and not is_same and steps:
        # Training ended while ranks were saving: what they all have is what can be looked at.
        step = steps[-1]
        warnings = (f"{path}: the latest steps of the ranks differ; this is {step}, the latest that all have",)
    if strategy is not None:
        opened = open_whole(
            path, strategy, step=step, replicated=replicated, may_leave_out=lambda name: True, option=option
        )
        return Subject(path, "ranks", opened, strategy, False, tuple(steps), warnings + _left_out(opened))
    folder = read_rank_folder(path, step)
    first = folder.ranks[0]
    base = Checkpoint(
        path,
        first.format,
        is_folder=True,
        tensors=first.tensors,
        metadata=first.metadata,
        sources=tuple(file for rank in folder.ranks for file in rank.sources),
        warnings=tuple(dict.fromkeys(warning for rank in folder.ranks for warning in rank.warnings)),
    )
    opened = Opened(base, Gathered(first.tensors, {}), len(folder.ranks), folder.step, folder=folder)
    return Subject(path, "ranks", opened, None, True, tuple(steps), warnings)


def _left_out(opened: Opened) -> tuple[str, ...]:
    names = opened.whole.left_out
    if not names:
        return ()
    return (
        f"{opened.base.path}: {len(names)} tensors such as {names[0]} are in no layout, so that nobody knows whether "
        "ranks hold slices or copies of them; they are left out. Say with --replicated PATTERN which are copies",
    )
