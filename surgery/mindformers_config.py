"""MindFormers' configurations of LoRA: a run's YAML of every generation, and the manifest of PyNative adapters."""

from __future__ import annotations

import math
import os
from typing import Any

from surgery.config import LoraConfig, Selection
from surgery.documents import read_json, read_yaml
from surgery.errors import MismatchError, Problem
from surgery.methods import known_methods
from surgery.mindformers_sections import PLACES, pet_sections
from surgery.options import Options, is_unset

__all__ = ["parse_mindformers_manifest", "parse_run", "read_mindformers_adapter_config", "read_run_yaml"]

_MANIFEST_FORMAT = "mindformers_pynative_lora_adapter_v1"

_USED_OPTIONS = frozenset({"pet_type", "lora_rank", "lora_alpha", "target_modules", "reg_rules", "exclude_layers"})
_HARMLESS_OPTIONS = frozenset(
    {
        *("lora_dropout", "lora_a_init", "lora_b_init", "lora_a_std", "lora_b_std"),
        *("param_init_type", "compute_dtype", "freeze_include", "freeze_exclude"),
        *("in_channels", "out_channels"),  # of the first generation's pet_config
    }
)


def read_run_yaml(path: str | os.PathLike[str]) -> LoraConfig:
    """Read LoRA's section of a MindFormers run YAML.

    It is looked for, and may be given, as `model.model_config.pet_config`; as `model.arch.pet` (`pet_type` beside
    `pet_config`, the target layers as `reg_rules`); as `lora_config` (PyNative); as `pet_config` at the top; and as
    the section alone. Alpha is None where the section has none: MindFormers' default differs between versions.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no such file, or a value is not of its option's type.
        MismatchError: It has no such section, or two that differ; the method is not LoRA; an option is not known.
    """
    return parse_run(read_yaml(path), str(path))


def read_mindformers_adapter_config(path: str | os.PathLike[str]) -> LoraConfig:
    """Read the `mindformers_adapter_config.json` that MindFormers 2.1 writes beside a PyNative adapter.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no such file, or a value is not of its option's type.
        MismatchError: Its format version is not known, or an option of its `lora_config` is not.
    """
    return parse_mindformers_manifest(read_json(path), str(path))


def parse_mindformers_manifest(values: dict[str, Any], source: str) -> LoraConfig:
    """The same of a manifest's object. See `read_mindformers_adapter_config`."""
    if values.get("format") != _MANIFEST_FORMAT:
        raise MismatchError(
            Problem(
                f"{source}: format",
                repr(values.get("format")),
                repr(_MANIFEST_FORMAT),
                "Another version of the format may mean something else: give --alpha and leave the file aside",
            )
        )
    section = values.get("lora_config")
    if not isinstance(section, dict):
        raise MismatchError(Problem(f"{source}: lora_config", repr(section), "an object with lora_rank and lora_alpha"))
    return _parse(f"{source}: lora_config", section, Selection.MINDFORMERS_PYNATIVE, source)


def parse_run(values: dict[str, Any], source: str) -> LoraConfig:
    """The same of a run's mapping. See `read_run_yaml`."""
    found = [
        _parse(f"{source}: {section.name}", section.values, section.selection, source)
        for section in pet_sections(values)
    ]
    if not found:
        includes = values.get("base_config")
        remedy = (
            f"It includes {includes}: give that file" if includes else "Give the YAML that the adapter was trained with"
        )
        raise MismatchError(
            Problem(
                source,
                "no section on LoRA",
                PLACES,
                remedy,
            )
        )
    if any(config != found[0] for config in found):
        raise MismatchError(
            Problem(source, "several sections on LoRA that differ", "one, or the same in each", "Remove the wrong one")
        )
    return found[0]


def _parse(where: str, section: dict[str, Any], selection: Selection, source: str) -> LoraConfig:
    options = Options(where, section)
    method = (options.text("pet_type") or "lora").lower()
    options.check()
    if method == "bitfit":
        return LoraConfig(source, selection=selection)  # its weights take the place of the base's, with no scale
    if method != "lora":
        raise MismatchError(_refused_method(f"{where}: pet_type", method))
    target_modules = options.names_or_expression("target_modules" if options.given("target_modules") else "reg_rules")
    exclude_layers = options.names_or_expression("exclude_layers")
    config = LoraConfig(
        source=source,
        rank=options.whole("lora_rank"),
        alpha=_alpha(options, selection),
        target_modules=_expression(options, "target_modules", target_modules),
        exclude_modules=(exclude_layers,) if isinstance(exclude_layers, str) else exclude_layers,
        selection=selection,
    )
    for pattern in config.exclude_modules or ():
        options.expression("exclude_layers", pattern)
    options.check()
    unknown = [
        Problem(
            f"{where}: {name}",
            f"{value!r:.60}, an option of a MindFormers version that is not known here",
            "an option whose meaning for the weights is known",
            "Give --alpha instead of the file if the option changes no weight",
        )
        for name, value in section.items()
        if name not in _USED_OPTIONS | _HARMLESS_OPTIONS and not is_unset(value)
    ]
    if unknown:
        raise MismatchError(unknown)
    return config


def _refused_method(where: str, pet_type: str) -> Problem:
    if pet_type == "slora":
        reason, remedy = "it names many adapters, each with a configuration of its own", "Give the adapter's own folder"
    else:
        reasons = {method.pet_type: method.cannot_fold for method in known_methods()}
        reason = reasons.get(pet_type, "a method that is not known here")
        remedy = "Serve the network with what the method adds" if pet_type in reasons else ""
    return Problem(where, f"{pet_type}: {reason}", "lora", remedy)


def _alpha(options: Options, selection: Selection) -> float | None:
    alpha = options.number("lora_alpha")
    if alpha is None or selection is not Selection.MINDFORMERS_PYNATIVE or not math.isfinite(alpha):
        return alpha
    return float(int(alpha))  # as PyNative's `build_lora_model` trains with it


def _expression(options: Options, name: str, value: tuple[str, ...] | str | None) -> str | None:
    """MindFormers takes one regular expression; a list is one of alternatives."""
    if not isinstance(value, tuple):
        return value
    expression = "|".join(value)
    options.expression(name, expression)
    return expression or None
