"""PET methods, a module each: configuration, the parameters that it adds to a network, what it trains.

Nothing here knows a framework or a file. `surgery.network` changes live networks by these descriptions.
"""

from __future__ import annotations

from surgery.methods.adapter import AdapterConfig
from surgery.methods.base import (
    Initialiser,
    LayerKind,
    LayerPetConfig,
    Method,
    NetworkShape,
    NewParameter,
    PetConfig,
    Side,
    Target,
    TargetLayer,
    option,
)
from surgery.methods.bitfit import BitFitConfig
from surgery.methods.lora import LoraPetConfig
from surgery.methods.low_rank_adapter import LowRankAdapterConfig
from surgery.methods.prefix_tuning import PrefixTuningConfig
from surgery.methods.ptuning2 import Ptuning2Config
from surgery.methods.registry import known_methods, method_for, method_of, register_method

__all__ = [
    "AdapterConfig",
    "BitFitConfig",
    "Initialiser",
    "LayerKind",
    "LayerPetConfig",
    "LoraPetConfig",
    "LowRankAdapterConfig",
    "Method",
    "NetworkShape",
    "NewParameter",
    "PetConfig",
    "PrefixTuningConfig",
    "Ptuning2Config",
    "Side",
    "Target",
    "TargetLayer",
    "known_methods",
    "method_for",
    "method_of",
    "option",
    "register_method",
]
