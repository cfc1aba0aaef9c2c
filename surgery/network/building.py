"""Build the networks that MindFormers has, from its configurations, without what a method adds."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from surgery.documents import read_yaml
from surgery.errors import MismatchError, Problem, UsageError
from surgery.network.packages import Cell, PretrainedConfig

__all__ = ["build_pretrained"]


def build_pretrained(config: Any) -> Cell:
    """Build the network that a configuration describes. See `PetAdapter.get_pretrained_model`."""
    if isinstance(config, PretrainedConfig):
        return _build_of_object(config)
    values = read_yaml(config) if isinstance(config, (str, os.PathLike)) else config
    model = values.get("model") if isinstance(values, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(model.get("model_config"), Mapping):
        raise UsageError(
            Problem(
                "get_pretrained_model",
                "a configuration that describes no network",
                "a run's YAML with model.model_config and model.arch, or MindFormers' configuration of a network",
                "Or hand over the network itself",
            )
        )
    from mindformers.models.build_model import build_model
    from mindformers.tools.register import MindFormerConfig

    section = copy.deepcopy(_plain(model))
    section["model_config"].pop("pet_config", None)
    if isinstance(section.get("arch"), dict):
        section["arch"].pop("pet", None)
    return build_model(MindFormerConfig(**section))


def _build_of_object(config: Any) -> Cell:
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    kind = type(config).__name__
    names = [name for name in _names_of(kind) if MindFormerRegister.is_exist(MindFormerModuleType.MODELS, name)]
    if not names:
        raise MismatchError(
            Problem(kind, "a network that MindFormers does not have under a name like it", "a LlamaConfig, say")
        )
    untuned = copy.deepcopy(config)
    untuned.pet_config = None
    return MindFormerRegister.get_cls(MindFormerModuleType.MODELS, names[0])(untuned)


def _names_of(kind: str) -> tuple[str, ...]:
    stem = kind.removesuffix("Config")
    return tuple(stem + ending for ending in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _plain(values: Any) -> Any:
    """Mappings of every kind as dictionaries, copied."""
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    return [_plain(value) for value in values] if isinstance(values, list) else values
