"""Whether what the files hold more than once is the same each time."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_tools.distributed.gathering import Replica
from ckpt_tools.progress import Progress
from ckpt_tools.tensors.lazy import bands
from surgery.errors import Problem

__all__ = ["compare_replicas"]

_PIECE_ELEMENTS = 2**18


def compare_replicas(replicas: Sequence[Replica], progress: Progress) -> list[Problem]:
    """Read both of each pair, and tell those that differ in a bit."""
    progress.start(sum(replica.other.nbytes for replica in replicas), "comparing replicas")
    try:
        return [problem for replica in replicas for problem in _compare(replica, progress)]
    finally:
        progress.finish()


def _compare(replica: Replica, progress: Progress) -> list[Problem]:
    for region in bands(replica.kept.shape, _PIECE_ELEMENTS):
        kept, other = replica.kept.read(region), replica.other.read(region)
        progress.advance(other.nbytes)
        if kept.tobytes() != other.tobytes():
            where = f"{replica.name}, at {tuple(start for start, _ in region)}"
            found = f"other values on {replica.other_from}"
            return [Problem(where, found, f"those of {replica.kept_from}", "Are all files of one run and one step?")]
    return []
