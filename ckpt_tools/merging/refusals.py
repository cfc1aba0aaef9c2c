"""Why parameters of an adapter can neither be folded into a weight nor combined with others, in words."""

from __future__ import annotations

from surgery.errors import Problem
from surgery.naming import ParameterName, Role

__all__ = ["holds_base", "replaced_and_changed", "unfoldable", "weighed_dora", "weighed_whole"]

_UNFOLDABLE = {
    Role.PREFIX: "a prefix or prompt adds inputs to the model and changes no weight",
    Role.PTUNING2: "P-Tuning v2 adds keys and values to the attention and changes no weight",
    Role.BOTTLENECK: "a bottleneck adapter is a layer of its own with a nonlinearity inside",
    Role.LOW_RANK_ADAPTER: "a low-rank adapter is a layer of its own with a nonlinearity inside",
}


def unfoldable(parameter: ParameterName) -> str:
    """Why a parameter of another method folds into no weight."""
    return _UNFOLDABLE.get(parameter.role, f"{parameter.method} is no LoRA and is not folded here")


def weighed_whole(where: str, weight: float) -> Problem:
    """Why a tensor that takes the base's place cannot be weighed."""
    return Problem(
        where,
        f"weight {weight:g} of a tensor that was saved whole and takes the base's place",
        "weight 1, as it is no update that could be multiplied",
        "Leave --weight out for this adapter, or save the adapter without modules_to_save",
    )


def weighed_dora(where: str, weight: float) -> Problem:
    """Why a DoRA adapter cannot be weighed."""
    found = f"weight {weight:g} of a DoRA adapter, whose magnitudes rescale the whole weight"
    return Problem(where, found, "weight 1", "Leave --weight out for this adapter")


def holds_base(where: str, remedy: str) -> Problem:
    """Why a file is no adapter that has a layer's weight and its LoRA matrices."""
    found = "a base weight beside its own LoRA matrices: this file holds base and adapter"
    return Problem(where, found, "an adapter alone", remedy)


def replaced_and_changed(name: str) -> Problem:
    """Why one adapter cannot bring a weight that another one changes or brings."""
    return Problem(name, "two adapters, one of which replaces the weight", "one of the two", "Merge one at a time")
