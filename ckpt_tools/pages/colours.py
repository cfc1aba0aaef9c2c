"""The colours of drawings: names in the page's style sheet, one set of values for light, one for dark.

A drawing library wants numbers. So each name has a number that no picture has by chance, which is replaced by the name
in the finished SVG.
"""

from __future__ import annotations

import re

__all__ = ["HEAT_STEPS", "TINTS", "colour_of", "with_variables"]

HEAT_STEPS = 9
"""Steps of the scale of heatmaps, `heat-0` to `heat-8`, each with `heat-ink-N` for text on it."""

TINTS = 8
"""Light colours that tell slices apart, `tint-0` to `tint-7`; `ink` is readable on each."""

_NAMES = (
    "ink",
    "muted",
    "line",
    "accent",
    *(f"heat-{step}" for step in range(HEAT_STEPS)),
    *(f"heat-ink-{step}" for step in range(HEAT_STEPS)),
    *(f"tint-{number}" for number in range(TINTS)),
)
_NUMBERS = {name: f"#0101{number:02x}" for number, name in enumerate(_NAMES)}
_BY_NUMBER = {number: name for name, number in _NUMBERS.items()}
_NUMBER = re.compile(r"#0101[0-9a-f]{2}")


def colour_of(name: str) -> str:
    """What to draw with for the style sheet's colour of this name."""
    return _NUMBERS[name]


def with_variables(style: str) -> str:
    """CSS declarations with the style sheet's colours in the place of what was drawn with."""
    return _NUMBER.sub(lambda match: f"var(--{_BY_NUMBER[match[0]]})", style)
