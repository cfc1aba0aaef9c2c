"""Any source, whole or in slices of ranks, opened as whole tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tools.distributed.gathering import Gathered, gather
from ckpt_tools.distributed.iteration_sources import gather_iteration
from ckpt_tools.formats import Checkpoint, Iteration, is_iteration, open_checkpoint, read_iteration
from ckpt_tools.formats.ranks import RankFolder, is_rank_folder, read_rank_folder
from ckpt_tools.layout import Strategy
from surgery.errors import MismatchError, Problem, UsageError

__all__ = ["Opened", "open_whole"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A source whose headers were read.

    Attributes:
        base: The source as a whole checkpoint.
        whole: Its tensors, and how they are cut in the source.
        ranks: How many ranks it has; 0 for a whole one.
        step: Its step, where its files say one.
        iteration: What it was made of, where it is one of Checkpoint 2.0.
        folder: The files of its ranks, where it has them.
    """

    base: Checkpoint
    whole: Gathered
    ranks: int = 0
    step: str = ""
    iteration: Iteration | None = None
    folder: RankFolder | None = None

    def warned(self, warnings: Sequence[str]) -> Opened:
        """The same source with more warnings."""
        return replace(self, base=replace(self.base, warnings=(*self.base.warnings, *warnings))) if warnings else self


def open_whole(
    source: Path,
    strategy: Strategy | None,
    *,
    step: str | None = None,
    replicated: Sequence[str] = (),
    may_leave_out: Callable[[str], bool] = lambda name: False,
    option: str = "--src-strategy",
) -> Opened:
    """Read the headers of a source.

    Args:
        source: Folders of ranks, an iteration of Checkpoint 2.0 or its parent, a file or a folder of shards.
        strategy: How ranks' files are cut; None for a whole source, and for an iteration, which says it itself.
        step: Which step of ranks' files, or the number of the iteration; None for the latest.
        replicated: As for `gather`.
        may_leave_out: As for `gather`.
        option: What the user gives the strategy with.

    Raises:
        UsageError: Ranks' files without a strategy, or a strategy without them.
        PetSurgeryError: As of `read_rank_folder`, `gather`, `read_iteration` and `open_checkpoint`.
    """
    if is_rank_folder(source):
        if strategy is None:
            raise UsageError(
                Problem(
                    str(source),
                    "folders of ranks, and no strategy",
                    "the strategy that the run saved",
                    f"Give it with {option}; if every rank holds the whole model, pass the file of one",
                )
            )
        folder = read_rank_folder(source, step)
        first = folder.ranks[0]
        formats = sorted({rank.format for rank in folder.ranks})
        if len(formats) > 1:
            raise MismatchError(Problem(str(source), " and ".join(formats), "files of one format"))
        metadata = {key: value for key, value in first.metadata.items() if key != "remove_redundancy"}
        whole = gather(folder, strategy, replicated, may_leave_out)
        base = Checkpoint(
            source,
            first.format,
            is_folder=True,
            tensors=whole.tensors,
            metadata=metadata,
            sources=tuple(file for rank in folder.ranks for file in rank.sources),
            crc={file: value for rank in folder.ranks for file, value in rank.crc.items()},
            # Files of all ranks are odd in the same way.
            warnings=(*dict.fromkeys(warning for rank in folder.ranks for warning in rank.warnings), *whole.warnings),
        )
        return Opened(base, whole, len(folder.ranks), folder.step, folder=folder)
    if is_iteration(source):
        if strategy is not None:
            found, expected = "an iteration of Checkpoint 2.0, and a strategy", "the iteration alone"
            raise UsageError(Problem(str(source), found, expected, f"Leave {option} out: it says itself how it is cut"))
        return _open_iteration(source, step, replicated, may_leave_out)
    if strategy is not None and _is_there(source):
        raise UsageError(_without_ranks(source, option))
    if step is not None and _is_there(source):
        raise UsageError(Problem("--step", step, "folders of ranks as the source", "Leave it out"))
    base = open_checkpoint(source)
    if base.metadata.get("remove_redundancy", "").lower() == "true":
        warning = (
            f"{source}: it was saved with remove_redundancy; a rank of several leaves tensors to others: "
            f"pass the folder of all ranks with {option}"
        )
        base = replace(base, warnings=(*base.warnings, warning))
    parts = {name: (1,) * len(tensor.shape) for name, tensor in base.tensors.items()}
    return Opened(base, Gathered(base.tensors, parts))


def _is_there(source: Path) -> bool:
    try:
        return source.exists()
    except OSError:  # `open_checkpoint` says why
        return False


def _without_ranks(source: Path, option: str) -> Problem:
    """Rank folders are not where the user says; training puts them one folder deeper than the strategies'."""
    found, expected = "a whole checkpoint, and a strategy", "folders rank_0, rank_1, ..."
    inner = sorted(path for path in source.iterdir() if is_rank_folder(path)) if source.is_dir() else []
    if inner:
        return Problem(str(source), "a folder without them, and a strategy", expected, f"Is it {inner[0]}?")
    return Problem(str(source), found, expected, f"Leave {option} out")


def _open_iteration(
    source: Path, step: str | None, replicated: Sequence[str], may_leave_out: Callable[[str], bool]
) -> Opened:
    if step is not None and not re.fullmatch(r"[0-9]{1,18}", step):
        raise UsageError(Problem("--step", repr(step), "the number of an iteration, as in its folder's name: 120"))
    iteration = read_iteration(source, None if step is None else int(step))
    whole = gather_iteration(iteration, replicated, may_leave_out)
    base = Checkpoint(
        source,
        "safetensors",
        is_folder=True,
        tensors=whole.tensors,
        metadata={"format": "ms"},
        sources=iteration.sources,
        warnings=iteration.warnings,
    )
    number = "" if iteration.number is None else str(iteration.number)
    return Opened(base, whole, iteration.ranks, number, iteration)
