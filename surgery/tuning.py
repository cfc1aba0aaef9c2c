"""What a file says of tuning a network: the method's configuration, whose rules choose its layers, and the network.

It is a run's YAML of either generation of MindFormers, a section of one, PEFT's `adapter_config.json`, or the one that
MindFormers or this project writes beside an adapter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.adapter_facts import SECTION
from surgery.adapter_files import CONFIG_NAME
from surgery.config import LoraConfig, Selection
from surgery.documents import read_json, read_yaml
from surgery.errors import MismatchError, Problem
from surgery.methods import LoraPetConfig, NetworkShape, PetConfig
from surgery.mindformers_sections import mapping_at, pet_sections
from surgery.options import Options, is_unset
from surgery.peft_config import parse_peft_config
from surgery.pet_config import parse_pet_config

__all__ = ["Tuning", "parse_tuning", "read_tuning"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a network is tuned.

    Attributes:
        source: The file, or what else messages call it.
        config: The method's configuration.
        peft: PEFT's configuration, where its rules choose the layers; else None, and MindFormers' do.
        network: What the file says of the network, as a run's `model.model_config`; empty where it says nothing.
        run: All of the file, where it describes a network that MindFormers can build; else None.
    """

    source: str
    config: PetConfig
    peft: LoraConfig | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] | None = None

    def network_shape(self) -> NetworkShape:
        """What a prefix has to fit.

        Raises:
            CorruptInputError: A number is none.
            MismatchError: The file does not say it, or contradicts itself.
        """
        return _network_shape(self.source, self.network)

    def param_init_type(self) -> str | None:
        """The element type that the network's weights are made in, such as `fp32`; None where the file has none."""
        said = self.network.get("param_init_type") or self.network.get("params_dtype")  # the parallel core's name
        text = str(said or "").rpartition(".")[2].lower()
        return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(text)


def read_tuning(path: str | os.PathLike[str]) -> Tuning:
    """Read a file on tuning; a folder stands for the `adapter_config.json` in it.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no such file, an option is not known, or a value is none that it may have.
        MismatchError: It says nothing on tuning, says two things that differ, or wants what MindFormers' networks lack.
    """
    file = Path(path)
    file = file / CONFIG_NAME if file.is_dir() else file
    return parse_tuning(read_json(file) if file.suffix.lower() == ".json" else read_yaml(file), str(file))


def parse_tuning(values: Any, source: str = "the configuration") -> Tuning:
    """The same of what a file holds, or of a `PetConfig`."""
    if isinstance(values, PetConfig):
        return Tuning(source, values)
    own = mapping_at(values, SECTION) if isinstance(values, Mapping) else {}
    if isinstance(own.get("pet_config"), Mapping):  # what this project wrote knows more than PEFT's keys beside it
        return Tuning(source, parse_pet_config({"pet_config": own["pet_config"]}, source))
    if isinstance(values, Mapping) and "peft_type" in values:
        return _parse_peft(dict(values), source)
    config = parse_pet_config(values, source)
    model = mapping_at(values, "model") if isinstance(values, Mapping) else {}
    network = mapping_at(model, "model_config")
    if not network and isinstance(values, Mapping):
        # Sections of GLM2's have the shape of the network in them.
        network = next((section.values for section in pet_sections(values)), {})
    return Tuning(source, config, network=network, run=values if "model_config" in model else None)


_WITHOUT_COUNTERPART: Mapping[str, str] = {
    "use_dora": "DoRA's magnitudes",
    "use_rslora": "a scale of alpha / sqrt(rank)",
    "rank_pattern": "a rank for each layer",
    "alpha_pattern": "an alpha for each layer",
    "lora_bias": "a bias of B",
    "modules_to_save": "modules that are trained whole",
    "fan_in_fan_out": "weights of (in, out)",
}


def _parse_peft(values: dict[str, Any], source: str) -> Tuning:
    """PEFT's LoRA as MindFormers' networks have it: A from HeUniform(sqrt(5)), B of zeros, one rank and one alpha."""
    peft = parse_peft_config(values, source)
    options = Options(source, values)
    dropout = options.number("lora_dropout")
    options.check()
    problems = []
    for name, what in _WITHOUT_COUNTERPART.items():
        if not is_unset(values.get(name)):
            expected = f"nothing: MindFormers' LoRA doesn't know {what}"
            problems.append(Problem(f"{source}: {name}", f"{values[name]!r:.60}", expected, "Leave it out"))
    if peft.bias != "none":
        remedy = "Say which in freeze_exclude of a pet_config"
        problems.append(Problem(f"{source}: bias", repr(peft.bias), "'none': MindFormers' LoRA trains no bias", remedy))
    if values.get("init_lora_weights", True) not in (True, None):
        found, expected = f"{values['init_lora_weights']!r:.60}", "true: A from HeUniform(sqrt(5)), B of zeros"
        problems.append(Problem(f"{source}: init_lora_weights", found, expected, "Use a pet_config with lora_a_init"))
    for name, value in (("r", peft.rank), ("lora_alpha", peft.alpha)):
        if value is None:
            problems.append(Problem(source, f"no {name}", "it, as PEFT writes it"))
    if problems:
        raise MismatchError(problems)
    by_mindformers = peft.selection is Selection.MINDFORMERS
    chosen: dict[str, Any] = {"lora_rank": peft.rank, "lora_alpha": values["lora_alpha"]}
    if dropout is not None:
        chosen["lora_dropout"] = dropout
    if by_mindformers:
        chosen["target_modules"] = peft.target_modules
    config = parse_pet_config({"pet_type": LoraPetConfig.pet_type, **chosen}, source)
    return Tuning(source, config, peft=None if by_mindformers else peft)


# MindFormers' names for one thing, in LLaMA's and in GLM2's configuration.
_LAYERS = ("num_layers", "num_hidden_layers")
_HEADS = ("num_heads", "num_attention_heads")
_KV_HEADS = ("n_kv_heads", "num_key_value_heads")


def _network_shape(source: str, network: Mapping[str, Any]) -> NetworkShape:
    options = Options(f"{source}: model.model_config", dict(network))
    layers, heads, kv_heads = (_first(options, names) for names in (_LAYERS, _HEADS, _KV_HEADS))
    if options.flag("multi_query_attention"):
        kv_heads = options.whole("multi_query_group_num") or kv_heads
    channels, hidden = options.whole("kv_channels"), options.whole("hidden_size")
    options.check()
    problems = []
    needed = {"num_layers": layers, "num_heads": heads, "kv_channels or hidden_size": channels or hidden}
    remedy = "Give the run's YAML, whose model.model_config says it"
    for name, value in needed.items():
        if value is None or value < 1:
            problems.append(
                Problem(options.where, f"no {name}", "the shape of the attention that a prefix fits", remedy)
            )
    if problems:
        raise MismatchError(problems)
    assert layers is not None
    assert heads is not None
    if hidden is not None and (hidden % heads or (channels and channels * heads != hidden)):
        found = f"hidden_size {hidden}, {heads} heads" + (f" of {channels} (kv_channels)" if channels else "")
        raise MismatchError(Problem(options.where, found, "heads that share the hidden size evenly", "Correct one"))
    return NetworkShape(layers, kv_heads or heads, channels or (hidden or 0) // heads)


def _first(options: Options, names: tuple[str, ...]) -> int | None:
    return next((options.whole(name) for name in names if options.given(name)), None)
