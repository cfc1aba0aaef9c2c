"""What fuzzing needs to know of a reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

__all__ = ["Mutate", "Target"]

Mutate = Callable[[bytes, Random, Callable[[bytes], bytes]], bytes]
"""An input, where chance comes from, and a change of some bytes anywhere: another input."""


def _nothing(folder: Path) -> None:
    del folder


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: Gives it an input, in a folder of its own, and asserts what must hold of what it read.
        seeds: Sound inputs, and some that are nearly so.
        exit_codes: Those of its refusals.
        mutate: Changes inputs so that more than their first bytes are read; None for bytes anywhere.
        words: What stands in such files.
        prepare: Writes what the folder has beside the input.
    """

    read: Callable[[Path, bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    exit_codes: frozenset[int]
    mutate: Mutate | None = None
    words: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = _nothing
