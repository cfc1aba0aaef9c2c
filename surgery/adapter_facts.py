"""What an adapter's configuration file is to say, for whoever loads the adapter: PEFT and vLLM, MindFormers, SLoRA.

PEFT looks a layer's rank and alpha up in `rank_pattern` and `alpha_pattern`, by the first key that matches the end of
the layer's name, and selects layers by the ends of their names (`target_modules`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgery.errors import MismatchError, Problem
from surgery.version import __version__

__all__ = [
    "METADATA_CONFIG",
    "METADATA_FINGERPRINT",
    "SECTION",
    "AdaptedLayer",
    "AdapterFacts",
    "mindformers_config",
    "mindformers_lora",
    "peft_config",
    "slora_config",
    "surgery_section",
]

SECTION = "pet_surgery"
"""The section of a configuration file that this project writes; the others pass over it."""

METADATA_CONFIG = "pet_surgery.adapter_config"
"""Where the metadata of a safetensors file has the configuration, as JSON, if no file lies beside it."""

METADATA_FINGERPRINT = "pet_surgery.base_fingerprint"
"""Where the metadata of a safetensors file has the fingerprint of the base."""


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A layer with A and B.

    Attributes:
        name: The layer, as the adapter's file names it: without `base_model.model.`.
        rank: LoRA's rank.
        alpha: LoRA's alpha.
    """

    name: str
    rank: int
    alpha: float


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter is.

    Attributes:
        layers: Its layers, in the order of the file; at least one.
        other_layers: Layers of the base that have no A and B and might have; empty where the base is not known.
        saved_modules: Modules that were saved whole.
        has_biases: Whether biases of layers with A and B were saved, too.
        base_name: What the base is called, where it is known.
        use_rslora: Whether the scale is alpha / sqrt(rank).
        use_dora: Whether there are magnitudes.
        lora_bias: Whether B has a bias.
        fan_in_fan_out: Whether the adapted weights are (in, out).
        has_linear_alone: Whether all layers with A and B are linear ones: no embedding, and no stack of experts.
        dropout: The share of inputs that training dropped.
        section: What this project adds: see `surgery_section`.
    """

    layers: tuple[AdaptedLayer, ...]
    other_layers: tuple[str, ...] = ()
    saved_modules: tuple[str, ...] = ()
    has_biases: bool = False
    base_name: str = ""
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    has_linear_alone: bool = True
    dropout: float = 0.0
    section: Mapping[str, Any] = field(default_factory=dict)


def surgery_section(base_fingerprint: str, **more: Any) -> dict[str, Any]:
    """The section `pet_surgery`: the version that wrote the file, the base's fingerprint, and more."""
    section: dict[str, Any] = {"version": __version__}
    if base_fingerprint:
        section["base_fingerprint"] = base_fingerprint
    return section | more


def peft_config(facts: AdapterFacts) -> dict[str, Any]:
    """What PEFT's `adapter_config.json` says of a LoRA adapter, and vLLM reads of it."""
    keys = _pattern_keys([layer.name for layer in facts.layers])
    rank, ranks = _usual_and_others((key, layer.rank) for key, layer in zip(keys, facts.layers, strict=True))
    alpha, alphas = _usual_and_others((key, layer.alpha) for key, layer in zip(keys, facts.layers, strict=True))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": facts.base_name or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _number(alpha),
        "lora_dropout": facts.dropout,
        "target_modules": list(_target_modules(facts)),
        "rank_pattern": ranks,
        "alpha_pattern": {name: _number(value) for name, value in alphas.items()},
        "modules_to_save": list(facts.saved_modules) or None,
        "bias": "none",
        "fan_in_fan_out": facts.fan_in_fan_out,
        "init_lora_weights": True,
        "use_rslora": facts.use_rslora,
        "use_dora": facts.use_dora,
        "lora_bias": facts.lora_bias,
        SECTION: dict(facts.section),
    }


def mindformers_config(facts: AdapterFacts) -> dict[str, Any]:
    """What MindFormers' `LoraModel.save_pet_config` writes beside a LoRA checkpoint (1.9.0, `pet/models/lora.py`).

    It knows one rank and one alpha, and its rules select linear layers alone. Any other adapter has PEFT's keys
    besides, and the layers' own names.
    """
    if (_is_uniform(facts) and facts.has_linear_alone) and not (
        facts.use_rslora or facts.use_dora or facts.lora_bias or facts.saved_modules or facts.fan_in_fan_out
    ):
        layer = facts.layers[0]
        targets = [f".*{leaf}" for leaf in dict.fromkeys(map(_leaf, facts.layers))]
        return mindformers_lora(layer.rank, layer.alpha, facts.dropout, targets) | {SECTION: dict(facts.section)}
    return peft_config(facts)


def mindformers_lora(rank: int, alpha: float, dropout: float, target_modules: Sequence[str]) -> dict[str, Any]:
    """The keys that MindFormers writes of LoRA, in its order.

    Args:
        rank: LoRA's rank.
        alpha: LoRA's alpha.
        dropout: The share of inputs that training dropped.
        target_modules: Regular expressions of the names of layers.
    """
    return {
        "base_model_name_or_path": "none",
        "bias": "none",
        "lora_alpha": _number(alpha),
        "lora_bias": False,
        "lora_dropout": dropout,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(target_modules),
        "task_type": "CAUSAL_LM",
    }


def slora_config(facts: AdapterFacts) -> dict[str, Any]:
    """What MindFormers' SLoRA reads of an adapter (1.9.0, `pet/tuners/slora_adapter.py`).

    Raises:
        MismatchError: SLoRA cannot say what the adapter is.
    """
    problems = []
    if not _is_uniform(facts):
        problems.append(("several ranks or alphas", "one of each"))
    if not float(facts.layers[0].alpha).is_integer():
        problems.append((f"alpha {facts.layers[0].alpha:g}", "a whole number"))
    if facts.use_dora or facts.lora_bias or facts.saved_modules or facts.has_biases:
        problems.append(("magnitudes, biases or modules that were saved whole", "A and B alone"))
    if problems:
        raise MismatchError(Problem("--format slora", found, expected) for found, expected in problems)
    return {
        "peft_type": "LORA",
        "r": facts.layers[0].rank,
        "lora_alpha": int(facts.layers[0].alpha),
        "lora_dropout": float(facts.dropout),
        "use_rslora": facts.use_rslora,
        "target_modules": list(dict.fromkeys(map(_leaf, facts.layers))),
        SECTION: dict(facts.section),
    }


def _leaf(layer: AdaptedLayer) -> str:
    return layer.name.rpartition(".")[2]


def _is_uniform(facts: AdapterFacts) -> bool:
    return len({(layer.rank, layer.alpha) for layer in facts.layers}) == 1


def _target_modules(facts: AdapterFacts) -> Sequence[str]:
    """Names whose ends select these layers and no other.

    The last component of a layer's name does where no other layer has it. Without the base nobody knows, but where a
    projection is adapted in every block from the first on, it is in all of them, as far as anybody trains.
    """
    leaves = dict.fromkeys(map(_leaf, facts.layers))
    others = {name.rpartition(".")[2] for name in facts.other_layers}
    if not facts.other_layers:
        blocks = {leaf: {_block(layer.name) for layer in facts.layers if _leaf(layer) == leaf} for leaf in leaves}
        count = max((block for found in blocks.values() for block in found), default=-1) + 1
        others = {leaf for leaf, found in blocks.items() if found not in ({-1}, set(range(count)))}
    names: dict[str, None] = {}
    for layer in facts.layers:
        names[layer.name if _leaf(layer) in others else _leaf(layer)] = None
    return list(names)


def _pattern_keys(names: Sequence[str]) -> list[str]:
    """For each layer the expression that PEFT finds it by: its name, behind `^` where that ends another's name too.

    So a text model's `model.layers.0.q_proj` is not taken for a vision tower's `vision.model.layers.0.q_proj`.
    """
    known, ends = set(names), set()
    for name in names:
        rest = name
        while rest := rest.partition(".")[2]:
            if rest in known:
                ends.add(rest)
    return [f"^{name}" if name in ends else name for name in names]


def _block(name: str) -> int:
    """The number of the block that a layer is in; -1 where it is in none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def _usual_and_others(values: Iterable[tuple[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """The value that most have, and the others by name."""
    listed = list(values)
    usual, _ = Counter(value for _, value in listed).most_common(1)[0]
    return usual, {name: value for name, value in listed if value != usual}


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
