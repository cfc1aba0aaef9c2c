"""What the keys of a base are: weights, an adapter's parameters, training states, signs of quantisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.strict_json import MAX_JSON_BYTES
from surgery.errors import CorruptInputError, Problem
from surgery.naming import Role, classify

__all__ = ["BaseKeys", "huggingface_config", "quantisation_problem", "sort_keys"]

_QUANTISED_SUFFIXES = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".SCB",
    ".weight_scale_inv",
    ".weight_packed",
)
_QUANTISED_PARTS = (".quant_state.", ".weight.nested_")
_DEQUANTISE = "Merge into the weights it was quantised from, and quantise the result again"


@dataclass(frozen=True, slots=True)
class BaseKeys:
    """The keys of a base, each in one place.

    Attributes:
        weights: What a model loads.
        adapter: An adapter's parameters, as a combined checkpoint has them.
        states: Name to role, of optimizer states and training scalars.
    """

    weights: tuple[str, ...]
    adapter: tuple[str, ...]
    states: Mapping[str, Role]


def sort_keys(checkpoint: Checkpoint) -> BaseKeys:
    """Tell a base's keys apart by their names."""
    weights, adapter, states = [], [], {}
    names = frozenset(checkpoint.tensors)
    for name in checkpoint.tensors:
        role = classify(name, names).role
        if role is Role.WEIGHT:
            weights.append(name)
        elif role in (Role.OPTIMIZER, Role.SCALAR):
            states[name] = role
        else:
            adapter.append(name)
    return BaseKeys(tuple(weights), tuple(adapter), states)


def huggingface_config(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The `config.json` of a Hugging Face folder; None where there is none.

    Raises:
        CorruptInputError: It is no JSON object.
    """
    if Path("config.json") not in checkpoint.companions:
        return None
    path = checkpoint.path / "config.json"
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CorruptInputError(Problem(str(path), f"{path.stat().st_size} bytes", f"at most {MAX_JSON_BYTES}"))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptInputError(Problem(str(path), f"no JSON ({error})", "a JSON object")) from error
    if not isinstance(config, dict):
        raise CorruptInputError(Problem(str(path), f"a {type(config).__name__}", "a JSON object"))
    return config


def quantisation_problem(checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> Problem | None:
    """Why a base cannot take an adapter because it is quantised; None where it is not."""
    if config is not None and config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        where = f"{checkpoint.path / 'config.json'}, quantization_config"
        return Problem(where, f"a base quantised with {method}", "unquantised weights", _DEQUANTISE)
    for name in checkpoint.tensors:
        if name.endswith(_QUANTISED_SUFFIXES) or any(part in name for part in _QUANTISED_PARTS):
            return Problem(f"{checkpoint.path}, {name}", "a quantised base", "unquantised weights", _DEQUANTISE)
    return None
