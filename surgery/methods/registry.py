"""The methods that are known, by MindFormers' `pet_type`."""

from __future__ import annotations

from surgery.errors import MismatchError, Problem, UsageError
from surgery.methods.adapter import ADAPTER
from surgery.methods.base import Method, PetConfig
from surgery.methods.bitfit import BITFIT
from surgery.methods.lora import LORA
from surgery.methods.low_rank_adapter import LOW_RANK_ADAPTER
from surgery.methods.prefix_tuning import PREFIX_TUNING
from surgery.methods.ptuning2 import PTUNING2
from surgery.near import near_names

__all__ = ["known_methods", "method_for", "method_of", "register_method"]

_METHODS: dict[str, Method] = {
    method.pet_type: method for method in (LORA, PTUNING2, PREFIX_TUNING, ADAPTER, LOW_RANK_ADAPTER, BITFIT)
}


def register_method(method: Method) -> Method:
    """Make a method known. Registering the same one again does nothing.

    Raises:
        UsageError: Another method has its name.
    """
    known = _METHODS.setdefault(method.pet_type, method)
    if known is not method:
        raise UsageError(Problem(f"pet_type {method.pet_type!r}", f"taken by {known.title}", "a name of its own"))
    return method


def known_methods() -> tuple[Method, ...]:
    """All methods, in the order in which they became known."""
    return tuple(_METHODS.values())


def method_of(pet_type: str, where: str = "pet_type") -> Method:
    """The method of a name; upper and lower case are the same.

    Args:
        pet_type: The name, such as `lora`.
        where: Where it was given, for the message.

    Raises:
        MismatchError: There is none.
    """
    method = _METHODS.get(pet_type.lower())
    if method is None:
        near = near_names(pet_type.lower(), _METHODS)
        remedy = f"Did you mean {' or '.join(near)}?" if near else ""
        raise MismatchError(Problem(where, repr(pet_type), " or ".join(_METHODS), remedy))
    return method


def method_for(config: PetConfig) -> Method:
    """The method that a configuration belongs to."""
    return method_of(config.pet_type, type(config).__name__)
