"""The shared adapter core: what a PET method is, how its parameters are named and configured, and LoRA's algebra.

Nothing here imports mindspore, torch or `ckpt_tools`, and only the readers of configuration files touch a disk.
"""

from __future__ import annotations

from surgery.config import LoraConfig, Selection
from surgery.grouping import LoraGroup, LoraPair, group_lora
from surgery.locate import find_adapter_config, read_adapter_config
from surgery.mindformers_config import read_mindformers_adapter_config, read_run_yaml
from surgery.naming import ParameterName, Role, classify
from surgery.near import near_names
from surgery.peft_config import read_peft_config

__all__ = [
    "LoraConfig",
    "LoraGroup",
    "LoraPair",
    "ParameterName",
    "Role",
    "Selection",
    "classify",
    "find_adapter_config",
    "group_lora",
    "near_names",
    "read_adapter_config",
    "read_mindformers_adapter_config",
    "read_peft_config",
    "read_run_yaml",
]
