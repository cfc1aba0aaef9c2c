"""What a transform did."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.reports.base import OutputReport

__all__ = ["TransformReport", "TransformedTensor"]


@dataclass(frozen=True, slots=True)
class TransformedTensor:
    """A tensor of a transformed checkpoint.

    Attributes:
        name: Its name in the output.
        shape: The whole tensor's shape.
        dtype: Its element type in the output.
        src_parts: In how many parts each axis is cut in the source.
        dst_parts: In how many in the output.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    src_parts: tuple[int, ...]
    dst_parts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformReport(OutputReport):
    """What `transform` did, or in a dry run would do.

    Attributes:
        source: The source's path.
        src_strategy: The source's strategy; None where it is whole, or an iteration, which needs none.
        dst_strategy: The output's strategy; None where it is whole.
        step: Epoch and step in the names of the source's files, as `9_1`, or the number of its iteration; empty where
            they have none.
        src_ranks: How many ranks the source has; 0 where it is whole.
        dst_ranks: How many the output has; 0 where it is whole.
        tensors: What the output holds.
        dropped: Names of the source that the target has no layout for: optimizer states, and what was allowed.
        missing: Names of the target's strategy that the source does not have.
        ranks: The ranks whose files were written, as `0-63`, where the output is left to other runs; else None. Then
            `files`, `bytes_read` and `bytes_written` are of these alone.
        crc_checked: Paths of the source's files whose CRC-32 was checked, before the writing or on the way.
    """

    source: str
    src_strategy: str | None
    dst_strategy: str | None
    step: str
    src_ranks: int
    dst_ranks: int
    tensors: tuple[TransformedTensor, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    ranks: str | None = None
    crc_checked: tuple[str, ...] = ()
    command: str = "transform"
