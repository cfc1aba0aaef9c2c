"""The shared adapter core: what a PET method is, how its parameters are named and configured, and LoRA's algebra.

Nothing here imports mindspore, torch or `ckpt_tools`, and only the readers of configuration files touch a disk. What
`surgery.network` exports, `get_pet_model` and the adapters, is to be had from here too: it is imported when it is asked
for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from surgery.config import LoraConfig, Selection
from surgery.config_files import find_adapter_config, read_adapter_config
from surgery.grouping import LoraGroup, LoraPair, group_lora
from surgery.methods import (
    AdapterConfig,
    BitFitConfig,
    LoraPetConfig,
    LowRankAdapterConfig,
    PetConfig,
    PrefixTuningConfig,
    Ptuning2Config,
)
from surgery.mindformers_config import read_mindformers_adapter_config, read_run_yaml
from surgery.naming import ParameterName, Role, classify
from surgery.near import near_names
from surgery.peft_config import read_peft_config
from surgery.pet_config import parse_pet_config, read_pet_config
from surgery.targets import Verdict, selects
from surgery.ties import tied_partner
from surgery.translation import fused_parts, load_name_map, naming_of, to_huggingface, to_mindformers

__all__ = [
    "AdapterConfig",
    "BitFitConfig",
    "LoraConfig",
    "LoraGroup",
    "LoraPair",
    "LoraPetConfig",
    "LowRankAdapterConfig",
    "ParameterName",
    "PetConfig",
    "PrefixTuningConfig",
    "Ptuning2Config",
    "Role",
    "Selection",
    "Verdict",
    "classify",
    "find_adapter_config",
    "fused_parts",
    "group_lora",
    "load_name_map",
    "naming_of",
    "near_names",
    "parse_pet_config",
    "read_adapter_config",
    "read_mindformers_adapter_config",
    "read_peft_config",
    "read_pet_config",
    "read_run_yaml",
    "selects",
    "tied_partner",
    "to_huggingface",
    "to_mindformers",
]

if TYPE_CHECKING:  # so that type checkers know what `__getattr__` gives
    from surgery.network import *  # noqa: F403  (all of its `__all__`)

_OF_NETWORKS = frozenset(  # `surgery.network.__all__`: a test compares
    {
        *("AdapterAdapter", "BitFitAdapter", "DeltaCheckpoint", "Injection", "InjectionReport"),
        *("LoadReport", "LoraAdapter", "LowRankAdapter", "PetAdapter", "PrefixTuningAdapter"),
        *("Ptuning2Adapter", "TrainablePrefixLayer", "adapter_for", "adapter_of", "freeze"),
        *("freeze_from_config", "get_pet_model", "inject", "known_adapters", "load_ckpt"),
        *("merge_and_unload", "register_adapter", "save_delta", "unload"),
    }
)


def __getattr__(name: str) -> Any:
    if name not in _OF_NETWORKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("surgery.network"), name)
