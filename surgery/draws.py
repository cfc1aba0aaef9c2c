"""Random numbers that depend on a seed, a name and a place alone: the same for whoever asks for which part of them.

1. The key is the first 16 bytes, as two little-endian 64-bit words, of the SHA-256 of `SEED`, a zero byte, and the name
   in UTF-8; SEED in decimal.
2. Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with that key makes of the counter
   i // 4 + 1 four words, of which word i % 4 is the number at place i. (numpy's `Philox` counts up before it draws.)
3. The upper 52 bits b of the word give u = (b + 1/2) / 2^52: in the open interval (0, 1), symmetric about 1/2.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["uniform_draws"]

_WORDS = 4  # that Philox makes of a counter
_UNIT = 2.0**-52


def uniform_draws(seed: int, name: str, start: int, count: int) -> np.ndarray:
    """Numbers in the open interval (0, 1), at places that follow each other.

    Args:
        seed: Any whole number.
        name: What the numbers are for.
        start: The first place.
        count: How many there are.

    Returns:
        `(count,)`, float64.
    """
    key = np.frombuffer(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], "<u8")
    first = start // _WORDS
    generator = np.random.Philox(counter=first, key=key.astype(np.uint64))
    skipped = start - first * _WORDS
    words = generator.random_raw(skipped + count)[skipped:]
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * _UNIT
