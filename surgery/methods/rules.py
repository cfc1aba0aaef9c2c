"""How the options of methods are read and checked; what `surgery.options` has no reason to know."""

from __future__ import annotations

import math
from typing import Any

from surgery.methods.base import Rule
from surgery.options import Options

__all__ = ["flag", "fraction", "one_of", "positive", "scale"]


def positive(options: Options, name: str) -> int | None:
    """A whole number of at least 1."""
    value = options.whole(name)
    if value is not None and value < 1:
        options.refuse(name, "a whole number of at least 1")
        return None
    return value


def fraction(options: Options, name: str) -> float | None:
    """A probability to drop: from 0 to below 1."""
    value = options.number(name)
    if value is not None and not 0 <= value < 1:
        options.refuse(name, "a number from 0 to below 1")
        return None
    return value


def scale(options: Options, name: str) -> float | None:
    """A finite number other than 0; a whole one stays whole, as adapter files have it."""
    value = options.number(name)
    if value is None:
        return None
    if value == 0 or not math.isfinite(value):
        options.refuse(name, "a finite number other than 0")
        return None
    return options.values[name]


def flag(options: Options, name: str) -> bool | None:
    """A boolean; None where it is absent."""
    return options.flag(name) if options.given(name) else None


def one_of(*choices: str) -> Rule:
    """One of some strings."""

    def rule(options: Options, name: str) -> Any:
        return options.choice(name, *choices) if options.given(name) else None

    return rule
