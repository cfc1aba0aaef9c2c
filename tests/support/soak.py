"""How thorough differential tests are: as a push can wait for, or, with `make soak`, for as long as one likes."""

from __future__ import annotations

import os


def examples(count: int) -> int:
    """The random cases of a test: `count`, or as many times more as the environment variable SOAK says."""
    return count * int(os.environ.get("SOAK", "1"))
