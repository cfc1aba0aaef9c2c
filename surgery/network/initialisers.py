"""MindSpore's initialisers for the described ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surgery.methods import Initialiser
from surgery.network.packages import mindspore

__all__ = ["mindspore_initialiser"]

_kinds = mindspore.common.initializer


def mindspore_initialiser(initialiser: Initialiser) -> Any:
    """What MindSpore's `initializer` takes for a description.

    Raises:
        KeyError: MindSpore has none of that kind: `arange` is an array.
    """
    makers: dict[str, Callable[[float], Any]] = {
        "zeros": lambda _: "zeros",
        "ones": lambda _: "ones",
        "normal": lambda scale: _kinds.Normal(sigma=scale, mean=0.0),
        "uniform": lambda scale: _kinds.Uniform(scale=scale),
        "he_uniform": lambda scale: _kinds.HeUniform(negative_slope=scale),
        "xavier_uniform": lambda _: _kinds.XavierUniform(),
    }
    return makers[initialiser.kind](initialiser.scale)
