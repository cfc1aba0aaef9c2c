"""Methods on live MindSpore networks: the only part that imports mindspore, mindpet and mindformers.

    from surgery.network import get_pet_model
    network = get_pet_model(network, {"pet_type": "lora", "target_modules": ".*wq|.*wv"})

The names are importable from `surgery` too, which imports this package when one of them is asked for.
"""

from __future__ import annotations

from surgery.network.adapter import PetAdapter
from surgery.network.bitfit import BitFitAdapter
from surgery.network.bottleneck import AdapterAdapter
from surgery.network.export import DeltaCheckpoint, save_delta
from surgery.network.freezing import freeze, freeze_from_config
from surgery.network.injection import Injection, InjectionReport, get_pet_model, inject
from surgery.network.loading import LoadReport, load_ckpt
from surgery.network.lora import LoraAdapter
from surgery.network.low_rank import LowRankAdapter
from surgery.network.prefix_layer import TrainablePrefixLayer
from surgery.network.prefix_tuning import PrefixTuningAdapter
from surgery.network.ptuning2 import Ptuning2Adapter
from surgery.network.registry import adapter_for, adapter_of, known_adapters, register_adapter
from surgery.network.unloading import merge_and_unload, unload

__all__ = [
    "AdapterAdapter",
    "BitFitAdapter",
    "DeltaCheckpoint",
    "Injection",
    "InjectionReport",
    "LoadReport",
    "LoraAdapter",
    "LowRankAdapter",
    "PetAdapter",
    "PrefixTuningAdapter",
    "Ptuning2Adapter",
    "TrainablePrefixLayer",
    "adapter_for",
    "adapter_of",
    "freeze",
    "freeze_from_config",
    "get_pet_model",
    "inject",
    "known_adapters",
    "load_ckpt",
    "merge_and_unload",
    "register_adapter",
    "save_delta",
    "unload",
]
