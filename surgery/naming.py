"""What a parameter is, told from its name alone: the families in which adapters are spelled.

| family | A (rank, in) | B (out, rank) |
|---|---|---|
| mindpet | `X.mindpet_delta_lora_a` | `X.mindpet_delta_lora_b` |
| mindpet-bare | `X.mindpet_delta_lora_A`, or without `X.` | `..._B` |
| tk | `X.tk_delta_lora_a` | `X.tk_delta_lora_b` |
| pynative | `X.lora_a` (also SLoRA); expert weights `W_lora_a` (experts, in, rank) | `X.lora_b`; `W_lora_b` |
| parallel-core | `X.lora_A.weight` | `X.lora_B.weight` |
| peft | `base_model.model.X.lora_A.weight`; embeddings `...lora_embedding_A` | `...lora_B.weight` |
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from enum import Enum

from surgery.states import is_training_scalar, split_optimizer_state

__all__ = ["ParameterName", "Role", "classify"]


class Role(Enum):
    """What a parameter does; the values are what reports call it."""

    WEIGHT = "weight"
    LORA_A = "LoRA A"
    LORA_B = "LoRA B"
    LORA_MAGNITUDE = "DoRA magnitude"
    LORA_B_BIAS = "LoRA B bias"
    EMBEDDING_A = "embedding LoRA A"
    EMBEDDING_B = "embedding LoRA B"
    EXPERT_A = "expert LoRA A"
    EXPERT_B = "expert LoRA B"
    PREFIX = "prefix or prompt"
    PTUNING2 = "p-tuning v2"
    BOTTLENECK = "bottleneck adapter"
    LOW_RANK_ADAPTER = "low-rank adapter"
    OTHER_METHOD = "another PET method"
    OPTIMIZER = "optimizer state"
    SCALAR = "training scalar"
    TRAINING_AID = "training aid"
    SUPERSEDED = "superseded copy of a base weight"


@dataclass(frozen=True, slots=True)
class ParameterName:
    """A parameter's name and what it says.

    Attributes:
        name: The key in the checkpoint.
        role: What the parameter does.
        family: How it is spelled: `plain`, `mindpet`, `mindpet-bare`, `tk`, `pynative`, `parallel-core`, `peft`.
        layer: The module it belongs to, as the base model names it: without `base_model.model.` and without what PEFT
            puts in between (`base_layer`, `modules_to_save.NAME`, an adapter's name). For an expert weight the weight
            itself. Empty for a module that has no name.
        base: The weight it changes or replaces; None where it belongs to none.
        method: What `role` leaves open: the PET method of an `OTHER_METHOD`, the state of an `OPTIMIZER`.
    """

    name: str
    role: Role
    family: str
    layer: str
    base: str | None
    method: str = ""


_PEFT_PREFIX = "base_model.model."

_MINDPET_LORA = re.compile(r"(?:(?P<layer>.+)\.)?(?P<brand>mindpet|tk)_delta_lora_(?P<half>[abAB])")
_MINDPET_OTHER = re.compile(r"(?:mindpet|tk)_delta_(?P<method>.+)")
_MINDPET_METHODS = (
    ("ptuning2", Role.PTUNING2),
    ("prefixtuning", Role.PREFIX),
    ("low_rank_adapter", Role.LOW_RANK_ADAPTER),
    ("adapter", Role.BOTTLENECK),
)

_PYNATIVE_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[ab])")
_EXPERT_LORA = re.compile(r"(?P<weight>(?:.+\.)?[^.]+)_lora_(?P<half>[ab])")
_EMBEDDING_CELLS = frozenset({"tok_embeddings", "word_embeddings", "embed_tokens"})

# A live PEFT model (not one saved by `save_pretrained`) has the adapter's name behind the parameter's.
_LORA_MATRIX = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])(?P<adapter>\.[^.]+)?\.(?P<leaf>weight|bias)")
_LORA_EMBEDDING = re.compile(r"(?P<layer>.+)\.lora_embedding_(?P<half>[AB])(?:\.[^.]+)?")
_LORA_MAGNITUDE = re.compile(r"(?P<layer>.+)\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
_LORA_AID = re.compile(r"(?P<layer>.+)\.lora_(?:velora_embed|monteclora_sampler)(?:\..+)?")
_LORA_OTHER = re.compile(r"(?P<layer>.+)\.lora_(?P<kind>A|B|E|diag|arrow|embedding)(?:\..+)?")
_LORA_OTHER_METHODS = {
    "diag": "KaSA",
    "arrow": "Arrow",
    "embedding": "SLoRA's added vocabulary",
}  # a matrix without `.weight` and `lora_E` are AdaLoRA's

_PROMPT_NAMES = frozenset({"prompt_embeddings", "prefix_task_cols", "prefix_task_rows"})
_PEFT_METHODS = {
    "adamss_": "AdaMSS",
    "adaption_": "Llama-Adapter",
    "beft_": "BEFT",
    "boft_": "BOFT",
    "c3a_": "C3A",
    "deft_": "DEFT",
    "delora_": "DeLoRA",
    "fourierft_": "FourierFT",
    "frod_": "FRoD",
    "gralora_": "GraLoRA",
    "hada_": "LoHa",
    "hira_": "HiRA",
    "hra_": "HRA",
    "ia3_": "IA3",
    "lily_": "Lily",
    "ln_tuning_": "LN tuning",
    "lokr_": "LoKr",
    "miss_": "MiSS",
    "oft_": "OFT",
    "peanut_": "PEANuT",
    "poly_": "Poly",
    "psoft_": "PSOFT",
    "pvera_": "PVeRA",
    "randlora_": "RandLoRA",
    "ranknum": "AdaLoRA",
    "road_": "RoAd",
    "shadow_": "Shadow",
    "shira_": "SHiRA",
    "supertuning_": "SuperTuning",
    "tinylora_": "TinyLoRA",
    "trainable_tokens_": "trainable tokens",
    "unilora_": "UniLoRA",
    "vblora_": "VB-LoRA",
    "vera_": "VeRA",
    "waveft_": "WaveFT",
}


def classify(name: str, names: Container[str] = ()) -> ParameterName:
    """Tell what a parameter is from its name.

    Args:
        name: A key of a checkpoint.
        names: All keys of that checkpoint. Decides the few optimizer states whose prefix may also be a cell's name.
    """
    if is_training_scalar(name):
        return ParameterName(name, Role.SCALAR, "plain", "", None)
    state = split_optimizer_state(name, names)
    if state is not None:
        parameter = classify(state[1])
        return ParameterName(name, Role.OPTIMIZER, parameter.family, parameter.layer, None, state[0])
    if name in _PROMPT_NAMES or name.startswith("prompt_encoder."):
        return ParameterName(name, Role.PREFIX, "peft", "", None)
    if name.startswith(_PEFT_PREFIX):
        return _classify_peft(name)
    return (
        _classify_mindpet(name)
        or _classify_pynative(name)
        or _classify_lora(name, name, "parallel-core")
        or _plain(name)
    )


def _classify_mindpet(name: str) -> ParameterName | None:
    lora = _MINDPET_LORA.fullmatch(name)
    if lora:
        layer, half = lora["layer"] or "", lora["half"]
        family = "tk" if lora["brand"] == "tk" else "mindpet" if half.islower() else "mindpet-bare"
        role = Role.LORA_A if half in "aA" else Role.LORA_B
        return ParameterName(name, role, family, layer, _join(layer, "weight"))
    components = name.split(".")
    for position, component in enumerate(components):
        other = _MINDPET_OTHER.fullmatch(component)
        if other:
            layer = ".".join(components[:position])
            for method, role in _MINDPET_METHODS:
                if other["method"].startswith(method):
                    return ParameterName(name, role, "mindpet", layer, None)
            return ParameterName(name, Role.OTHER_METHOD, "mindpet", layer, None, component)
    return None


def _classify_pynative(name: str) -> ParameterName | None:
    linear = _PYNATIVE_LORA.fullmatch(name)
    if linear:
        layer, first = linear["layer"], linear["half"] == "a"
        if layer.rpartition(".")[2] in _EMBEDDING_CELLS:  # SLoRA
            role = Role.EMBEDDING_A if first else Role.EMBEDDING_B
            return ParameterName(name, role, "pynative", layer, f"{layer}.embedding_weight")
        return ParameterName(name, Role.LORA_A if first else Role.LORA_B, "pynative", layer, f"{layer}.weight")
    expert = _EXPERT_LORA.fullmatch(name)
    if expert:
        role = Role.EXPERT_A if expert["half"] == "a" else Role.EXPERT_B
        return ParameterName(name, role, "pynative", expert["weight"], expert["weight"])
    return None


def _classify_peft(name: str) -> ParameterName:
    inner = name[len(_PEFT_PREFIX) :]
    lora = _classify_lora(name, inner, "peft")
    if lora is not None:
        return lora
    components = inner.split(".")
    for position, component in enumerate(components):
        # Only near the end stands a method's parameter; further up it is a module of the base model.
        if component.startswith(tuple(_PEFT_METHODS)) and position >= max(1, len(components) - 3):
            method = next(text for prefix, text in _PEFT_METHODS.items() if component.startswith(prefix))
            layer = _base_layer(".".join(c for c in components[:position] if c != "token_adapter"))
            return ParameterName(name, Role.OTHER_METHOD, "peft", layer, None, method)
    if "original_module" in components[:-1]:
        return ParameterName(name, Role.SUPERSEDED, "peft", _base_layer(inner.rpartition(".")[0]), None)
    weight = _base_layer(inner)
    return ParameterName(name, Role.WEIGHT, "peft", weight.rpartition(".")[0], weight)


def _classify_lora(name: str, inner: str, family: str) -> ParameterName | None:
    """The spellings that PEFT and MindFormers' parallel core share."""
    matrix = _LORA_MATRIX.fullmatch(inner)
    if matrix:
        layer, leaf = _base_layer(matrix["layer"]), matrix["leaf"]
        family = "peft" if matrix["adapter"] else family
        if leaf == "weight":
            role = Role.LORA_A if matrix["half"] == "A" else Role.LORA_B
            return ParameterName(name, role, family, layer, f"{layer}.weight")
        if matrix["half"] == "B":
            return ParameterName(name, Role.LORA_B_BIAS, family, layer, f"{layer}.bias")
        return ParameterName(name, Role.OTHER_METHOD, family, layer, None, "a bias of LoRA A")
    embedding = _LORA_EMBEDDING.fullmatch(inner)
    if embedding:
        layer = _base_layer(embedding["layer"])
        role = Role.EMBEDDING_A if embedding["half"] == "A" else Role.EMBEDDING_B
        return ParameterName(name, role, "peft", layer, f"{layer}.weight")
    magnitude = _LORA_MAGNITUDE.fullmatch(inner)
    if magnitude:
        layer = _base_layer(magnitude["layer"])
        return ParameterName(name, Role.LORA_MAGNITUDE, "peft", layer, f"{layer}.weight")
    aid = _LORA_AID.fullmatch(inner)
    if aid:
        return ParameterName(name, Role.TRAINING_AID, "peft", _base_layer(aid["layer"]), None)
    other = _LORA_OTHER.fullmatch(inner)
    if other:
        method = _LORA_OTHER_METHODS.get(other["kind"], "AdaLoRA")
        return ParameterName(name, Role.OTHER_METHOD, "peft", _base_layer(other["layer"]), None, method)
    return None


def _plain(name: str) -> ParameterName:
    return ParameterName(name, Role.WEIGHT, "plain", name.rpartition(".")[0], name)


def _base_layer(path: str) -> str:
    """A path in a PEFT model as the base model has it, without the wrappers' components."""
    kept: list[str] = []
    components = iter(path.split("."))
    for component in components:
        if component == "modules_to_save":
            next(components, None)  # the adapter's name
        elif component not in {"base_layer", "original_module"}:
            kept.append(component)
    return ".".join(kept)


def _join(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf
