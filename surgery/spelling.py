"""How each family spells an adapter's parameters: the way back from `surgery.naming.classify`."""

from __future__ import annotations

from surgery.naming import Role

__all__ = ["FAMILIES", "spell"]

_PEFT = "base_model.model."

# `X` stands for the layer, of an expert weight for the weight itself.
_SPELLINGS: dict[str, dict[Role, str]] = {
    "mindpet": {Role.LORA_A: "X.mindpet_delta_lora_a", Role.LORA_B: "X.mindpet_delta_lora_b"},
    "mindpet-bare": {Role.LORA_A: "X.mindpet_delta_lora_A", Role.LORA_B: "X.mindpet_delta_lora_B"},
    "tk": {Role.LORA_A: "X.tk_delta_lora_a", Role.LORA_B: "X.tk_delta_lora_b"},
    "pynative": {
        Role.LORA_A: "X.lora_a",
        Role.LORA_B: "X.lora_b",
        Role.EMBEDDING_A: "X.lora_a",
        Role.EMBEDDING_B: "X.lora_b",
        Role.EXPERT_A: "X_lora_a",
        Role.EXPERT_B: "X_lora_b",
    },
    "parallel-core": {
        Role.LORA_A: "X.lora_A.weight",
        Role.LORA_B: "X.lora_B.weight",
        Role.LORA_B_BIAS: "X.lora_B.bias",
    },
    "peft": {
        Role.LORA_A: f"{_PEFT}X.lora_A.weight",
        Role.LORA_B: f"{_PEFT}X.lora_B.weight",
        Role.LORA_B_BIAS: f"{_PEFT}X.lora_B.bias",
        Role.LORA_MAGNITUDE: f"{_PEFT}X.lora_magnitude_vector",
        Role.EMBEDDING_A: f"{_PEFT}X.lora_embedding_A",
        Role.EMBEDDING_B: f"{_PEFT}X.lora_embedding_B",
    },
}

FAMILIES = tuple(_SPELLINGS)
"""The families of LoRA's parameters; see `surgery.naming`."""


def spell(role: Role, layer: str, family: str) -> str | None:
    """The name of a parameter of a layer.

    Args:
        role: What the parameter does. A `WEIGHT` is a plain weight of the adapter, which takes the base's place.
        layer: The layer as `ParameterName.layer` has it; of a `WEIGHT` the weight's name.
        family: One of `FAMILIES`.

    Returns:
        The name; None where the family has no such parameter.
    """
    if role is Role.WEIGHT:
        return f"{_PEFT}{layer}" if family == "peft" else layer
    pattern = _SPELLINGS[family].get(role)
    if pattern is None:
        return None
    return pattern.replace("X", layer) if layer else pattern.replace("X.", "").replace("X", "")
