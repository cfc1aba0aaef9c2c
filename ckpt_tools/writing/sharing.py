"""Tensors of which several files hold slices: read or computed once, and written to all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckpt_tools.tensors.lazy import LazyTensor, Region, byte_stretches, full_region, region_shape
from ckpt_tools.tensors.views import Sliced
from ckpt_tools.writing.plan import OutputFile

__all__ = ["Share", "Taker", "find_shares", "meeting"]


@dataclass(frozen=True, slots=True)
class Taker:
    """A tensor of a file that is a rectangle of another tensor.

    Attributes:
        file: The file's number.
        index: The tensor's number in the file.
        region: The rectangle.
    """

    file: int
    index: int
    region: Region


@dataclass(frozen=True, slots=True)
class Share:
    """A tensor and those that are rectangles of it.

    Attributes:
        tensor: The whole.
        region: The rectangle around all that is taken.
        takers: What is taken.
    """

    tensor: LazyTensor
    region: Region
    takers: tuple[Taker, ...]


def find_shares(files: Sequence[OutputFile]) -> list[Share]:
    """The tensors that are better read once for all that is taken of them, in the order of the files.

    That is where two files want the same elements, and where what is taken lies scattered in the whole: who reads
    every 16th kilobyte of a file for one rank reads the rest of it for the others.
    """
    takers: dict[int, list[Taker]] = {}
    wholes: dict[int, LazyTensor] = {}
    for number, file in enumerate(files):
        for index, (_, tensor) in enumerate(file.tensors):
            whole, region = (tensor.source, tensor.region) if isinstance(tensor, Sliced) else (tensor, None)
            wholes[id(whole)] = whole
            taker = Taker(number, index, full_region(whole.shape) if region is None else region)
            takers.setdefault(id(whole), []).append(taker)
    return [
        Share(wholes[key], _around([taker.region for taker in group]), tuple(group))
        for key, group in takers.items()
        if wholes[key].shape and (_overlap(group) or any(_is_scattered(wholes[key], taker.region) for taker in group))
    ]


def meeting(share: Share, taker: Taker, region: Region) -> tuple[tuple[slice, ...], Iterator[tuple[int, int]]] | None:
    """Where a rectangle of the whole meets what is taken.

    Returns:
        What of the rectangle is taken, and the (start, length) in bytes of the stretches of the taker's content that it
        fills, one behind the other; None where they do not meet.
    """
    common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(region, taker.region, strict=True)]
    if any(start >= stop for start, stop in common):
        return None
    cut = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(common, region, strict=True))
    place = tuple((a - low, b - low) for (a, b), (low, _) in zip(common, taker.region, strict=True))
    return cut, byte_stretches(region_shape(taker.region), place, share.tensor.dtype.itemsize)


def _around(regions: Sequence[Region]) -> Region:
    return tuple((min(a for a, _ in spans), max(b for _, b in spans)) for spans in zip(*regions, strict=True))


def _is_scattered(whole: LazyTensor, region: Region) -> bool:
    return sum(1 for _ in zip(range(2), byte_stretches(whole.shape, region, 1), strict=False)) > 1


def _overlap(takers: Sequence[Taker]) -> bool:
    """Whether two of them want the same rows; those that share rows and no element are scattered anyway."""
    rows = sorted(taker.region[0] if taker.region else (0, 1) for taker in takers)
    return any(stop > start for (_, stop), (start, _) in itertools.pairwise(rows))
