"""What `adapter_config.json` says beside an adapter, or a network with one: PEFT's keys for LoRA, and all of ours."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from surgery.methods import LoraPetConfig
from surgery.tuning import DEFAULT_TARGETS, Tuning
from surgery.version import __version__

__all__ = ["CONFIG_NAME", "adapter_config"]

CONFIG_NAME = "adapter_config.json"

_SECTION = "pet_surgery"


def adapter_config(tuning: Tuning, base_fingerprint: str) -> dict[str, Any]:
    """The content of an `adapter_config.json`.

    Of LoRA by MindFormers' rules it has the keys that MindFormers writes, so that it reads the file; of LoRA by PEFT's,
    those of PEFT. The section `pet_surgery` has the configuration in full.

    Args:
        tuning: How the network is tuned.
        base_fingerprint: The fingerprint of the base.
    """
    config = tuning.config
    options = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    said = {"pet_type": config.pet_type, **{name: value for name, value in options.items() if value is not None}}
    section: dict[str, Any] = {"version": __version__, "base_fingerprint": base_fingerprint}
    if not isinstance(config, LoraPetConfig):
        return {"pet_config": said, _SECTION: section}
    lora = {
        "base_model_name_or_path": "none",
        "bias": "none",
        "lora_alpha": config.lora_alpha,
        "lora_bias": False,
        "lora_dropout": config.lora_dropout,
        "peft_type": "LORA",
        "r": config.lora_rank,
        "target_modules": (config.target_modules or DEFAULT_TARGETS).split("|"),
        "task_type": "CAUSAL_LM",
    }
    if tuning.peft is None:
        return {**lora, _SECTION: {**section, "pet_config": said}}
    peft = tuning.peft
    chosen: dict[str, object] = {"target_modules": peft.target_modules, "exclude_modules": peft.exclude_modules}
    chosen |= {"layers_to_transform": peft.layers_to_transform, "layers_pattern": peft.layers_pattern}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    return {**lora, "base_model_name_or_path": peft.base_model_name or None, **listed, _SECTION: section}
