"""How many of the points at which a run may be killed or fail are tried: all of them, or what a push can wait for.

The environment variable RELIABILITY says it: `all`; a number N, which takes every N-th; by default a few of some cases.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from crash_cases import CASES, Case

__all__ = ["chosen_cases", "chosen_points", "is_thorough"]

_SETTING = os.environ.get("RELIABILITY", "")
_STRIDE = 1 if _SETTING == "all" else int(_SETTING or 31)

# Each has something that no other has: files beside it, an exchange of folders, two outputs, a scratch file, parts.
_FEW = (
    "merge to a folder with a patch",
    "merge to a folder, replacing one",
    "split with the remainder",
    "split by extraction",
    "inject to a .ckpt",
    "transform to ranks in parts",
)


def chosen_cases() -> Sequence[Case]:
    """The cases that are tried."""
    return CASES if _SETTING else [case for case in CASES if case.name in _FEW]


def chosen_points(count: int) -> range:
    """The calls, from 1 to `count`, that are tried; the last among them."""
    return range((count - 1) % _STRIDE + 1, count + 1, _STRIDE)


def is_thorough() -> bool:
    """Whether all is tried, however long it takes."""
    return _SETTING == "all"
