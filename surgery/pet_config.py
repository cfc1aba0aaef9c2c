"""A method's configuration, from whatever a user has: a mapping, MindFormers' own objects, a run's YAML.

Nothing that is handed in is changed, and all that is wrong is reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from surgery.config import Selection
from surgery.documents import read_json, read_yaml
from surgery.errors import CorruptInputError, MismatchError, Problem
from surgery.methods.base import PetConfig
from surgery.methods.registry import method_of
from surgery.mindformers_sections import PLACES, pet_sections
from surgery.near import near_names
from surgery.options import Options, is_unset

__all__ = ["parse_pet_config", "read_pet_config"]

# MindFormers' configuration of a network; its parallel core has the tuning's beside the rest of the network's.
_ATTRIBUTE = "pet_config"


def read_pet_config(path: str | os.PathLike[str], *, pet_type: str = "") -> PetConfig:
    """Read a method's configuration from a run's YAML of either generation, or from JSON of the same form.

    Args:
        path: The file.
        pet_type: The method, where the file does not name one.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no such file, an option is not known, or its value is none that it may have.
        MismatchError: It has no section on tuning, or two that differ; or the method is not known.
    """
    reader = read_json if str(path).lower().endswith(".json") else read_yaml
    return parse_pet_config(reader(path), str(path), pet_type=pet_type)


def parse_pet_config(config: Any, source: str = "the configuration", *, pet_type: str = "") -> PetConfig:
    """A method's configuration.

    Args:
        config: A `PetConfig`, which is returned as it is; a mapping: a run's configuration with a section on tuning, or
            such a section itself; a MindFormers `PetConfig`, `MindFormerConfig` or configuration of a network.
        source: What messages call it.
        pet_type: The method, where the configuration does not name one. Where both do they must agree.

    Raises:
        CorruptInputError: An option is not known, or its value is none that it may have.
        MismatchError: There is no section on tuning, there are two that differ, or the method is not known or another.
    """
    if isinstance(config, PetConfig):
        return _of_method(config, pet_type, source)
    values = config if isinstance(config, Mapping) else getattr(config, _ATTRIBUTE, None)
    if not isinstance(values, Mapping):
        raise MismatchError(
            Problem(source, f"a {type(config).__name__} without a pet_config", "a mapping or a PetConfig")
        )
    sections = [section for section in pet_sections(values) if section.selection is Selection.MINDFORMERS]
    if not sections and pet_type and "model" not in values:
        return _parse_section(dict(values), source, pet_type)  # an adapter of one method needs no `pet_type`
    if not sections:
        raise MismatchError(Problem(source, "no section on tuning with a pet_type", PLACES))
    found = [
        _parse_section(
            section.values, source if section.name == "the whole file" else f"{source}: {section.name}", pet_type
        )
        for section in sections
    ]
    if any(one != found[0] for one in found):
        raise MismatchError(
            Problem(source, "several sections on tuning that differ", "one, or the same in each", "Remove one")
        )
    return found[0]


def _parse_section(values: dict[str, Any], where: str, pet_type: str) -> PetConfig:
    options = Options(where, values)
    name = options.text("pet_type") or pet_type
    options.check()
    if not name:
        raise MismatchError(Problem(where, "no pet_type", "the name of a method", "Add pet_type: lora, say"))
    method = method_of(name, f"{where}: pet_type")
    chosen, known = {}, {"pet_type", *method.config.ignored}
    for entry in fields(method.config):
        spellings = (entry.name, *entry.metadata["spellings"])
        known.update(spellings)
        value = _read(options, entry, spellings)
        if value is not None:
            chosen[entry.name] = value
    for key, value in values.items():
        if key not in known and not is_unset(value):
            near = near_names(key, sorted(known - {"pet_type"}))
            remedy = f"Did you mean {' or '.join(near)}?" if near else "Remove it"
            options.problems.append(Problem(f"{where}: {key}", f"no option of {method.title}", remedy=remedy))
    if options.problems:
        raise CorruptInputError(options.problems)
    return _of_method(method.config(**chosen), pet_type, where)


def _read(options: Options, entry: Field[Any], spellings: tuple[str, ...]) -> Any:
    given = [spelling for spelling in spellings if options.given(spelling)]
    values = [entry.metadata["rule"](options, spelling) for spelling in given]
    if any(value != values[0] for value in values):
        options.problems.append(
            Problem(f"{options.where}: {' and '.join(given)}", "two names of one option, which differ", "one of them")
        )
    return values[0] if values else None


def _of_method(config: PetConfig, pet_type: str, where: str) -> PetConfig:
    if pet_type and config.pet_type != method_of(pet_type).pet_type:
        raise MismatchError(
            Problem(where, f"pet_type {config.pet_type!r}", f"{pet_type!r}", "Use the adapter of that method")
        )
    return config
