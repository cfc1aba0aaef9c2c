"""BitFit in networks: nothing is added."""

from __future__ import annotations

from typing import Any

from surgery.methods.bitfit import BITFIT
from surgery.network.adapter import PetAdapter
from surgery.network.packages import Cell
from surgery.network.registry import register_adapter

__all__ = ["BitFitAdapter"]


@register_adapter
class BitFitAdapter(PetAdapter):
    """Trains the biases that a network has: all that it does is done by freezing."""

    method = BITFIT

    @classmethod
    def get_pet_model(cls, model: Cell | None = None, config: Any = None) -> Cell:
        return cls.start(model, config)[0]
