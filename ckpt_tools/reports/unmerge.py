"""What undoing a merge did."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.reports.base import DroppedTensor, OutputReport

__all__ = ["UnmergeReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmergeReport(OutputReport):
    """What `unmerge` did, or in a dry run would do.

    Attributes:
        merged: The merged model's path.
        patch: The patch's path.
        adapters: The adapters' paths.
        base_fingerprint: That of the base that is restored, as `ckpt_tools.fingerprint.fingerprint` defines it.
        restored: Names of the tensors that are restored, each of which is proved to be the base's, bit for bit.
        dropped: What else the base held, which nothing brings back, and what it was.
    """

    merged: str
    patch: str
    adapters: tuple[str, ...]
    base_fingerprint: str
    restored: tuple[str, ...]
    dropped: tuple[DroppedTensor, ...]
    command: str = "unmerge"
