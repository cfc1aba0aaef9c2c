"""Whether what the files hold more than once is the same each time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckpt_tools.distributed.gathering import Gathered, RankReplicas, Replica
from ckpt_tools.progress import Progress
from ckpt_tools.tensors.lazy import Region, bands
from surgery.errors import Problem

__all__ = ["compare_replicas", "compare_unlisted", "sample_replicas"]

_PIECE_ELEMENTS = 2**18
_MAX_PROBLEMS = 50

# A page or two of each tensor: nothing, next to the tensor itself.
_SAMPLE_ELEMENTS = 1024


def compare_replicas(replicas: Sequence[Replica | RankReplicas], progress: Progress) -> list[Problem]:
    """Read both of each pair, and tell those that differ in a bit."""
    progress.start(sum(pair.other.nbytes for replica in replicas for pair in replica.pairs()), "comparing replicas")
    try:
        problems = [problem for replica in replicas for pair in replica.pairs() for problem in _compare(pair, progress)]
    finally:
        progress.finish()
    more = len(problems) - _MAX_PROBLEMS
    rest = [Problem("replicas", f"{more} more that differ", "the same values on all ranks")] if more > 0 else []
    return [*problems[:_MAX_PROBLEMS], *rest]


def compare_unlisted(whole: Gathered, progress: Progress) -> list[Problem]:
    """Tell what no strategy speaks of and is not the same on all ranks, which it has to be."""
    return compare_replicas([replica for replica in whole.replicas if replica.name in whole.unlisted], progress)


def sample_replicas(whole: Gathered) -> list[str]:
    """A warning if, for some tensors, the beginnings of two copies differ; it costs a page of each.

    So it looks where a strategy is another run's, or cannot be read as it was meant: what it takes for copies are
    different slices. But some states (accumulated gradients) may differ between ranks by right.
    """
    differing = []
    for replica in whole.replicas:
        pair = next(replica.pairs(), None)
        if pair is not None and replica.name not in whole.unlisted:
            region = next(bands(pair.kept.shape, _SAMPLE_ELEMENTS), None)
            if region is not None and pair.kept.read(region).tobytes() != pair.other.read(region).tobytes():
                differing.append(pair)
    if not differing:
        return []
    first, count = differing[0], len(differing)
    which = f"the copies of {first.name}" if count == 1 else f"the copies of {count} tensors such as {first.name}"
    return [
        f"{which} on {first.kept_from} and {first.other_from} differ, and those of {first.kept_from} are taken: is the "
        "strategy that of this run? --check-replicas compares all"
    ]


def _compare(replica: Replica, progress: Progress) -> list[Problem]:
    for region in bands(replica.kept.shape, _PIECE_ELEMENTS):
        kept, other = replica.kept.read(region), replica.other.read(region)
        progress.advance(other.nbytes)
        if kept.tobytes() != other.tobytes():
            where = f"{replica.name}, at ({', '.join(map(str, _first_difference(kept, other, region)))})"
            found, expected = f"other values on {replica.other_from}", f"the values of {replica.kept_from}"
            return [Problem(where, found, expected, "Are all files of one run and one step?")]
    return []


def _first_difference(kept: np.ndarray, other: np.ndarray, region: Region) -> list[int]:
    """Where in the tensor the first element is whose bits differ, of two arrays that are this rectangle of it."""
    differ = np.frombuffer(kept.tobytes(), np.uint8) != np.frombuffer(other.tobytes(), np.uint8)
    place = np.unravel_index(int(np.argmax(differ)) // kept.itemsize, kept.shape)
    return [start + int(index) for (start, _), index in zip(region, place, strict=True)]
