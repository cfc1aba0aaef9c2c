"""Where in a network a tensor is: its layer and its module, as its name shows."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Place", "place_of"]

_PARAMETERS = ("weight", "bias", "embedding_weight", "embedding_table")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's layer and module.

    Attributes:
        stack: What the layers are counted in, as `model.layers`.
        layer: The layer's number.
        module: The module in it, as `attention.wq`; a further number in it is `*`, so that experts share a place.
    """

    stack: str
    layer: int
    module: str


def place_of(name: str) -> Place | None:
    """The place of a tensor or a layer of this name; None where it is in no numbered layer."""
    parts = name.split(".")
    if len(parts) > 1 and parts[-1] in _PARAMETERS and not parts[-2].isdecimal():
        parts.pop()
    for position, part in enumerate(parts[:-1]):
        if part.isascii() and part.isdecimal() and len(part) < 7:
            module = ".".join("*" if other.isdecimal() else other for other in parts[position + 1 :])
            return Place(".".join(parts[:position]), int(part), module)
    return None
