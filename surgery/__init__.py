"""The shared adapter core: what a PET method is, how its parameters are named and configured, and LoRA's algebra.

Nothing here imports mindspore, torch or `ckpt_tools`, and only the readers of configuration files touch a disk.
"""

from __future__ import annotations

from surgery.config import LoraConfig, Selection
from surgery.config_files import find_adapter_config, read_adapter_config
from surgery.grouping import LoraGroup, LoraPair, group_lora
from surgery.mindformers_config import read_mindformers_adapter_config, read_run_yaml
from surgery.naming import ParameterName, Role, classify
from surgery.near import near_names
from surgery.peft_config import read_peft_config
from surgery.targets import Verdict, selects
from surgery.ties import tied_partner
from surgery.translation import fused_parts, load_name_map, naming_of, to_huggingface, to_mindformers

__all__ = [
    "LoraConfig",
    "LoraGroup",
    "LoraPair",
    "ParameterName",
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
    "read_adapter_config",
    "read_mindformers_adapter_config",
    "read_peft_config",
    "read_run_yaml",
    "selects",
    "tied_partner",
    "to_huggingface",
    "to_mindformers",
]
