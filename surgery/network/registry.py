"""Which adapter puts which method into networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.errors import MismatchError, Problem
from surgery.methods import PetConfig, method_of, register_method

if TYPE_CHECKING:
    from surgery.network.adapter import PetAdapter

__all__ = ["adapter_for", "adapter_of", "known_adapters", "register_adapter"]

_ADAPTERS: dict[str, type[PetAdapter]] = {}


def register_adapter(adapter: type[PetAdapter]) -> type[PetAdapter]:
    """Make an adapter, and with it its method, known under the method's `pet_type`; to be used as a decorator."""
    assert adapter.method is not None, f"{adapter.__name__} names no method"
    register_method(adapter.method)
    _ADAPTERS[adapter.method.pet_type] = adapter
    return adapter


def adapter_of(pet_type: str) -> type[PetAdapter]:
    """The adapter of a method, by its name.

    Raises:
        MismatchError: There is no such method, or none of it for networks.
    """
    method = method_of(pet_type)
    adapter = _ADAPTERS.get(method.pet_type)
    if adapter is None:
        raise MismatchError(Problem("pet_type", f"{method.title}, which has no adapter", " or ".join(_ADAPTERS)))
    return adapter


def adapter_for(config: PetConfig) -> type[PetAdapter]:
    """The adapter of the method that a configuration belongs to."""
    return adapter_of(config.pet_type)


def known_adapters() -> dict[str, type[PetAdapter]]:
    """`pet_type` to adapter."""
    return dict(_ADAPTERS)
