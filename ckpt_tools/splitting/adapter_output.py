"""How a delta is laid out for whoever loads it: names, file names and configuration of each kind of adapter.

ckpt, safetensors   adapter_model.<format>, adapter_config.json   the names as they are
peft                adapter_model.safetensors, adapter_config.json   PEFT's names, of Hugging Face's layers
mindformers         adapter_model.<format>, adapter_config.json   MindPet's names, of MindFormers' layers
slora               lora_adapter.json, NAME/adapter_model.ckpt, NAME/adapter_config.json   SLoRA's names
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.writing.plan import Entry, OutputBytes, OutputFile, Plan
from surgery.adapter_facts import METADATA_CONFIG, mindformers_config, peft_config, slora_config
from surgery.config_files import config_beside
from surgery.errors import MismatchError, Problem, UsageError
from surgery.naming import ParameterName, Role
from surgery.spelling import spell
from surgery.translation import fused_parts, load_name_map, naming_of, to_huggingface, to_mindformers

__all__ = [
    "CONFIGS",
    "CONFIG_FILE",
    "METADATA_CONFIG",
    "AdapterLayout",
    "AdapterOptions",
    "files_beside",
    "named_delta",
    "plan_adapter",
]

CONFIG_FILE = "adapter_config.json"

_WEIGHTS = "adapter_model"
_SUFFIXES = {".ckpt": "ckpt", ".safetensors": "safetensors"}

# The family that LoRA's parameters are spelled in, and whose layers' names these are; None: as they are.
_SPELLINGS = {"peft": ("peft", "hf"), "mindformers": ("mindpet", "mindformers"), "slora": ("pynative", "mindformers")}


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """What the user wants an adapter to be.

    Attributes:
        path: Where it goes: a folder, or a file where it has the suffix of one.
        format: `keep`, `ckpt`, `safetensors`, `peft`, `mindformers` or `slora`.
        names: `keep`, `hf`, `mindformers`, a JSON file of the base's old and new names; empty for what the format asks.
    """

    path: Path
    format: str = "keep"
    names: str = ""


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """A delta under the names that it will have.

    Attributes:
        tensors: Name to tensor, in order.
        layers: Name in the source to the layer that A or B belongs to, as the output names it.
        renamed: Name in the source to name in the output.
    """

    tensors: tuple[NamedTensor, ...]
    layers: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)


def named_delta(
    delta: Sequence[ParameterName], tensors: Mapping[str, LazyTensor], options: AdapterOptions
) -> AdapterLayout:
    """Give a delta the names that a kind of adapter has.

    Args:
        delta: Its parameters.
        tensors: Name to tensor.
        options: What the user wants.

    Raises:
        InputMissingError: The file of names is not there.
        CorruptInputError: It is no object of names.
        MismatchError: A parameter has no name there, or two would have one.
    """
    family, wanted = _SPELLINGS.get(options.format, (None, "keep"))
    translate = _translation(options.names or wanted, delta, is_asked=bool(options.names))
    named: list[NamedTensor] = []
    layers: dict[str, str] = {}
    renamed: dict[str, str] = {}
    problems = []
    for parameter in delta:
        is_weight = parameter.role is Role.WEIGHT
        own = (parameter.base or parameter.name) if is_weight else parameter.layer
        place = translate(own)
        if options.format == "peft" and (parts := fused_parts(f"{own}.weight")):
            found = f"{parameter.name}, of the fused rows of {', '.join(parts)}"
            problems.append(Problem("--format peft", found, "layers that Hugging Face has"))
            continue
        new = _new_name(parameter, own, place, family)
        if new is None:
            found = f"{parameter.name}, which is {parameter.role.value}"
            problems.append(
                Problem(
                    f"--format {options.format}",
                    found,
                    "LoRA's A and B of linear layers",
                    "Keep its names: --format keep",
                )
            )
            continue
        layers[parameter.name] = place
        renamed[parameter.name] = new
        named.append((new, tensors[parameter.name]))
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    problems += [Problem(name, "the new name of several parameters", "a name for each") for name in twice]
    if problems:
        raise MismatchError(problems)
    return AdapterLayout(tuple(named), layers, renamed)


def _new_name(parameter: ParameterName, own: str, place: str, family: str | None) -> str | None:
    if family is None:
        return parameter.name if own == place else parameter.name.replace(own, place, 1)
    if parameter.role is Role.WEIGHT:
        # PEFT saves an adapted embedding as `base_layer`.
        is_same = parameter.family == family and own == place
        return parameter.name if is_same else spell(Role.WEIGHT, place, family)
    if parameter.family == "plain":
        return None
    return spell(parameter.role, place, family)


def _translation(names: str, delta: Sequence[ParameterName], *, is_asked: bool) -> Callable[[str], str]:
    """From the name of a layer or a weight in the source to that in the output."""
    if names == "keep":
        return lambda name: name
    if names in ("hf", "mindformers"):
        translate = to_huggingface if names == "hf" else to_mindformers
        wanted = "huggingface" if names == "hf" else "mindformers"
        layers = [parameter.layer for parameter in delta]
        # Names of networks that are not known are kept where nobody asked for others.
        if is_asked and naming_of(map(translate, layers)) != wanted:
            found, expected = "layers of a network whose names are not known", "those of a LLaMA-like network"
            raise MismatchError(
                Problem(f"--names {names}", found, expected, "Give a JSON file of the base's old and new names")
            )
        return translate
    table = load_name_map(names)

    def look_up(name: str) -> str:
        if name in table:
            return table[name]
        weight = table.get(f"{name}.weight", "")
        return weight.removesuffix(".weight") if weight.endswith(".weight") else name

    return look_up


def plan_adapter(
    layout: AdapterLayout,
    options: AdapterOptions,
    source_format: str,
    config: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
) -> Plan:
    """Lay an adapter out.

    Args:
        layout: The delta under its new names.
        options: What the user wants.
        source_format: `ckpt` or `safetensors`: kept where the options say nothing.
        config: The configuration; None where it is not known.
        metadata: Strings for a safetensors file.

    Raises:
        UsageError: Options contradict each other.
        MismatchError: A tensor is of a type that the format cannot hold.
    """
    suffix = _SUFFIXES.get(options.path.suffix.lower())
    if options.format == "slora":
        return _plan_slora(layout, options, config)
    chosen = options.format if options.format in _SUFFIXES.values() else source_format
    if options.format == "peft":
        chosen = "safetensors"
    if suffix is None:
        name = f"{_WEIGHTS}.{chosen}"
        strings = _strings(options, metadata, None) if chosen == "safetensors" else {}
        entries: list[Entry] = [OutputFile(name, chosen, layout.tensors, strings)]
        if config is not None:
            entries.append(OutputBytes(CONFIG_FILE, _json(config)))
        return Plan(options.path, True, tuple(entries))
    if options.format == "peft":
        found = f"the single file {options.path.name}"
        raise UsageError(Problem("--format peft", found, "a folder", "Give -o without a suffix"))
    if options.format in _SUFFIXES.values() and options.format != suffix:
        raise UsageError(
            Problem("--format", options.format, f"{suffix}, as in {options.path.name}", "Leave one of the two out")
        )
    strings = _strings(options, metadata, config) if suffix == "safetensors" else {}
    return Plan(options.path, False, (OutputFile(options.path.name, suffix, layout.tensors, strings),))


def files_beside(plan: Plan, config: Mapping[str, Any] | None) -> dict[Path, bytes]:
    """The configuration beside a `.ckpt`, which has no place for it: path to content."""
    is_bare = not plan.is_folder and next(plan.files()).format == "ckpt"
    return {config_beside(plan.output): _json(config)} if is_bare and config is not None else {}


def _plan_slora(layout: AdapterLayout, options: AdapterOptions, config: Mapping[str, Any] | None) -> Plan:
    if options.path.suffix.lower() in _SUFFIXES:
        found = f"the single file {options.path.name}"
        raise UsageError(Problem("--format slora", found, "a folder", "Give -o without a suffix"))
    assert config is not None  # SLoRA has LoRA alone, whose configuration is complete or refused
    name = options.path.name
    # MindFormers joins these paths with its working folder, wherever that is.
    table = {name: str(options.path.absolute() / name)}
    return Plan(
        options.path,
        True,
        (
            OutputFile(f"{name}/{_WEIGHTS}.ckpt", "ckpt", layout.tensors),
            OutputBytes(f"{name}/{CONFIG_FILE}", _json(config)),
            OutputBytes("lora_adapter.json", _json(table)),
        ),
    )


def _strings(options: AdapterOptions, metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> dict[str, str]:
    # MindSpore writes "ms", Hugging Face "pt", which is what its libraries ask for.
    strings = {"format": "pt" if options.format == "peft" else "ms", **metadata}
    if config is not None:
        strings[METADATA_CONFIG] = json.dumps(config)
    return strings


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"


CONFIGS = {"peft": peft_config, "mindformers": mindformers_config, "slora": slora_config}
"""What makes the configuration of each kind."""
