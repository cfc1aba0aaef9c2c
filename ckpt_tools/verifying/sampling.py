"""Which stretches of a tensor are looked at, and what looking at some of them can promise."""

from __future__ import annotations

import math

import numpy as np
from blake3 import blake3

from ckpt_tools.tensors.lazy import Region, bands

__all__ = ["chance_of_share", "choose"]

_TILE_ELEMENTS = 2**16


def choose(name: str, shape: tuple[int, ...], share: float, seed: int, band_elements: int) -> tuple[list[Region], int]:
    """The stretches of a tensor that are read, and how many it has in all.

    Of n stretches, ceil(share * n) are drawn without replacement by seed and name: at least one, so that what
    concerns a whole tensor is found in any sample.

    Args:
        name: The tensor's name.
        shape: Its shape.
        share: Which share of it is read, above 0 to 1.
        seed: What they are drawn by.
        band_elements: Elements of a stretch where all are read.
    """
    if share >= 1:
        regions = list(bands(shape, min(band_elements, 2**18)))
        return regions, len(regions)
    regions = list(bands(shape, _TILE_ELEMENTS))
    count = max(1, math.ceil(share * len(regions)))
    digest = blake3(f"{seed}\0{name}".encode()).digest(8)
    drawn = np.random.default_rng(int.from_bytes(digest, "little")).permutation(len(regions))[:count]
    return [regions[i] for i in sorted(drawn)], len(regions)


def chance_of_share(share: float, stretches: int, faulty: float = 0.01) -> float:
    """The chance at least that a fault in a share of all stretches is found: 1 - (1 - share)^ceil(faulty * stretches).

    Each stretch is read with a chance of `share` at least, and drawing without replacement makes missing all of several
    no likelier than missing each by itself.
    """
    return 1.0 if share >= 1 else 1 - (1 - share) ** max(1, math.ceil(faulty * stretches))
