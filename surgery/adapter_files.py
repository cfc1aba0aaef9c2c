"""What `adapter_config.json` says beside an adapter, or a network with one: PEFT's keys for LoRA, and all of ours."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from surgery.adapter_facts import SECTION, mindformers_lora, surgery_section
from surgery.cell_rules import DEFAULT_TARGETS
from surgery.config import LoraConfig
from surgery.methods import LoraPetConfig, PetConfig

__all__ = ["CONFIG_NAME", "adapter_config"]

CONFIG_NAME = "adapter_config.json"


def adapter_config(config: PetConfig, base_fingerprint: str, peft: LoraConfig | None = None) -> dict[str, Any]:
    """The content of an `adapter_config.json`.

    Of LoRA by MindFormers' rules it has the keys that MindFormers writes, so that it reads the file; of LoRA by PEFT's,
    those of PEFT. The section `pet_surgery` has the configuration in full.

    Args:
        config: The method's configuration.
        base_fingerprint: That of the weights that LoRA changes; empty of other methods.
        peft: PEFT's configuration, where its rules choose the layers.
    """
    options = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    said = {"pet_type": config.pet_type, **{name: value for name, value in options.items() if value is not None}}
    section = surgery_section(base_fingerprint)
    if not isinstance(config, LoraPetConfig):
        return {"pet_config": said, SECTION: section}
    targets = (config.target_modules or DEFAULT_TARGETS).split("|")
    lora = mindformers_lora(config.lora_rank, config.lora_alpha, config.lora_dropout, targets)
    if peft is None:
        return {**lora, SECTION: {**section, "pet_config": said}}
    chosen: dict[str, object] = {"target_modules": peft.target_modules, "exclude_modules": peft.exclude_modules}
    chosen |= {"layers_to_transform": peft.layers_to_transform, "layers_pattern": peft.layers_pattern}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    return {**lora, "base_model_name_or_path": peft.base_model_name or None, **listed, SECTION: section}
