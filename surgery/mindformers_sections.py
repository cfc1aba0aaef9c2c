"""Where the configurations of MindFormers' generations say how a network is tuned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from surgery.config import Selection

__all__ = ["PLACES", "PetSection", "mapping_at", "pet_sections"]

PLACES = "model.model_config.pet_config, model.arch.pet, lora_config or pet_config"


@dataclass(frozen=True, slots=True)
class PetSection:
    """A section on tuning.

    Attributes:
        name: Where it stands.
        values: What it says; a copy.
        selection: Whose rules choose the layers.
    """

    name: str
    values: dict[str, Any]
    selection: Selection


def pet_sections(values: Mapping[str, Any]) -> Iterator[PetSection]:
    """The sections on tuning of a run's configuration, or the whole of it where it is one itself.

    Args:
        values: The configuration; it is not changed.
    """
    model = mapping_at(values, "model")
    pet_config = mapping_at(model, "model_config").get("pet_config")
    if isinstance(pet_config, Mapping):
        yield PetSection("model.model_config.pet_config", dict(pet_config), Selection.MINDFORMERS)
    pet = mapping_at(mapping_at(model, "arch"), "pet")
    if pet:
        inner = {"pet_type": pet.get("pet_type"), **mapping_at(pet, "pet_config")}
        yield PetSection("model.arch.pet", inner, Selection.MINDFORMERS)
    if isinstance(values.get("lora_config"), Mapping):
        yield PetSection("lora_config", dict(values["lora_config"]), Selection.MINDFORMERS_PYNATIVE)
    marks = {"lora_rank", "lora_alpha"}
    if isinstance(values.get("pet_config"), Mapping):
        inner = {"pet_type": values.get("pet_type"), **values["pet_config"]}
        yield PetSection("pet_config", inner, Selection.MINDFORMERS)
    else:
        marks.add("pet_type")
    if "model" not in values and not values.keys().isdisjoint(marks):
        yield PetSection("the whole file", dict(values), Selection.MINDFORMERS)


def mapping_at(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; an empty one where there is none."""
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}
