"""Any source, whole or in slices of ranks, opened as whole tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.distributed.gathering import Gathered, gather
from ckpt_tools.formats import Checkpoint, open_checkpoint
from ckpt_tools.formats.ranks import is_rank_folder, read_rank_folder
from ckpt_tools.layout import Strategy
from ckpt_tools.tensors.sources import Source
from surgery.errors import MismatchError, Problem, UsageError

__all__ = ["Opened", "open_whole"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A source whose headers were read.

    Attributes:
        whole: Its tensors.
        base: What the output descends from: format, metadata, and shards or other files where it was whole.
        crc: File to the CRC-32 in it.
        ranks: How many ranks it has; 0 for a whole one.
        step: Its step, where its files say one.
        warnings: What is odd but legal.
    """

    whole: Gathered
    base: Checkpoint
    crc: Mapping[Source, int]
    ranks: int
    step: str
    warnings: tuple[str, ...]


def open_whole(source: Path, strategy: Strategy | None, step: str | None, replicated: Sequence[str]) -> Opened:
    """Read the headers of a source.

    Args:
        source: Folders of ranks, a file or a folder of shards.
        strategy: How ranks' files are cut; None for a whole source.
        step: Which step of ranks' files; None for the latest.
        replicated: As for `gather`.

    Raises:
        UsageError: Ranks' files without a strategy, or a strategy without them.
        PetSurgeryError: As of `read_rank_folder`, `gather` and `open_checkpoint`.
    """
    if is_rank_folder(source):
        if strategy is None:
            raise UsageError(
                Problem(
                    str(source),
                    "folders of ranks, and no strategy",
                    "the strategy that the run saved",
                    "Give it with --src-strategy; if every rank holds the whole model, pass the file of one",
                )
            )
        folder = read_rank_folder(source, step)
        first = folder.ranks[0]
        formats = sorted({rank.format for rank in folder.ranks})
        if len(formats) > 1:
            raise MismatchError(Problem(str(source), " and ".join(formats), "files of one format"))
        metadata = {key: value for key, value in first.metadata.items() if key != "remove_redundancy"}
        base = Checkpoint(source, first.format, True, {}, metadata=metadata, crc=first.crc)
        crc = {file: value for rank in folder.ranks for file, value in rank.crc.items()}
        # Files of all ranks are odd in the same way.
        warnings = dict.fromkeys(warning for rank in folder.ranks for warning in rank.warnings)
        whole = gather(folder, strategy, replicated)
        return Opened(whole, base, crc, len(folder.ranks), folder.step, tuple(warnings))
    if strategy is not None:
        raise UsageError(
            Problem(
                str(source),
                "a whole checkpoint, and a strategy",
                "folders rank_0, rank_1, ...",
                "Leave --src-strategy out",
            )
        )
    if step is not None:
        raise UsageError(Problem("--step", step, "folders of ranks as the source", "Leave it out"))
    base = open_checkpoint(source)
    parts = {name: (1,) * len(tensor.shape) for name, tensor in base.tensors.items()}
    return Opened(Gathered(base.tensors, parts), base, base.crc, 0, "", base.warnings)
