"""Hugging Face PEFT's `adapter_config.json`: what of it makes an adapter foldable, and what forbids it.

The options are those of `LoraConfig` in PEFT 0.2 to 0.21.2. An option that is not among them belongs to a version that
is not known; where it is set (neither null nor false nor empty) it may change what the adapter means, so the file is
refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from surgery.config import LAYER_INDEX_PATTERN, LAYER_PATTERN, SAVED_MODULE_PATTERN, LoraConfig, Selection
from surgery.documents import read_json
from surgery.errors import MismatchError, Problem
from surgery.options import Options, is_unset

__all__ = ["parse_peft_config", "read_peft_config"]


def read_peft_config(path: str | os.PathLike[str]) -> LoraConfig:
    """Read an `adapter_config.json` of PEFT, or the one that MindFormers 1.8 and later write in its manner.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no such file, or a value is not of its option's type.
        MismatchError: The adapter is no LoRA, or it has options with which B @ A is not all that the adapter does.
    """
    return parse_peft_config(read_json(path), str(path))


def parse_peft_config(values: dict[str, Any], source: str) -> LoraConfig:
    """The same of a file's object. See `read_peft_config`."""
    options = Options(source, values)
    method = options.text("peft_type")
    options.check()
    if method != "LORA":
        raise MismatchError(_refused_method(source, method))
    config = LoraConfig(
        source=source,
        rank=options.whole("r"),
        alpha=options.number("lora_alpha"),
        use_rslora=options.flag("use_rslora"),
        use_dora=options.flag("use_dora"),
        fan_in_fan_out=options.flag("fan_in_fan_out"),
        rank_pattern=options.numbers_by_expression("rank_pattern", whole=True, form=LAYER_PATTERN),
        alpha_pattern=options.numbers_by_expression("alpha_pattern", whole=False, form=LAYER_PATTERN),
        bias=options.choice("bias", "none", "all", "lora_only"),
        lora_bias=options.flag("lora_bias"),
        modules_to_save=_expressions(options, "modules_to_save", SAVED_MODULE_PATTERN),
        target_modules=_target_modules(options),
        exclude_modules=options.names_or_expression("exclude_modules"),
        layers_to_transform=options.indices("layers_to_transform"),
        layers_pattern=_layers_pattern(options),
        ensure_weight_tying=options.flag("ensure_weight_tying"),
        selection=Selection.MINDFORMERS if _is_by_mindformers(values) else Selection.PEFT,
        base_model_name=options.text("base_model_name_or_path"),
    )
    options.check()
    problems = [problem for name, value in values.items() for problem in _refused_option(source, name, value)]
    if problems:
        raise MismatchError(problems)
    return config


# How a method that is not LoRA can be used all the same.
_SERVE = "Serve it with the prompt or prefix that it trained"
_MERGE_WITH_PEFT = "Merge it with PEFT's merge_and_unload where that supports it"
_PROMPT_METHODS = frozenset(
    {
        *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
        "ADAPTION_PROMPT",
    }
)
_ROUTED_METHODS = frozenset({"XLORA", "POLY", "SHADOW"})


def _refused_method(source: str, method: str) -> Problem:
    if method in _PROMPT_METHODS:
        reason, remedy = "it adds inputs to the model and changes no weight", _SERVE
    elif method in _ROUTED_METHODS:
        reason, remedy = "what it adds depends on the input", "Serve it with PEFT"
    elif not method:
        reason, remedy = "the file does not name a method", "Is it the adapter's configuration?"
    else:
        reason, remedy = "its change of a weight is not B @ A", _MERGE_WITH_PEFT
    return Problem(f"{source}: peft_type", f"{method or 'nothing'}: {reason}", "LORA", remedy)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What an option that is set means for folding.

    Attributes:
        accepts: Whether a value leaves the adapter what B @ A says.
        reason: Why another one does not.
        remedy: What to do then.
    """

    accepts: Callable[[Any], bool]
    reason: str = ""
    remedy: str = _MERGE_WITH_PEFT


def _anything(value: Any) -> bool:
    del value
    return True


def _null(value: Any) -> bool:
    # PEFT turns the empty object of a sub-configuration into one with all its defaults, which is set.
    return value is None or value is False


def _keeps_base(value: Any) -> bool:
    return value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in _KEEPING_INITS)


# These choose where A and B start. PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ also subtract the first B @ A from the base
# weight, or quantise it: the saved B @ A belongs to that changed base, which the adapter's file does not hold.
_KEEPING_INITS = frozenset({"", "eva", "gaussian", "mica", "orthogonal", "true", "false"})

_USED = _Rule(_anything)
_HARMLESS = _Rule(_anything)

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(
        (
            *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern"),
            *("alpha_pattern", "bias", "lora_bias", "modules_to_save", "target_modules", "exclude_modules"),
            *("layers_to_transform", "layers_pattern", "base_model_name_or_path", "ensure_weight_tying"),
        ),
        _USED,
    ),
    # Of the training, the loading or the file, not of the weights. The sub-configurations of an initialisation say
    # nothing that `init_lora_weights` does not decide; VeLoRA and MonteCLoRA change the training's backward and
    # forward pass only: PEFT evaluates and merges both as plain LoRA.
    **dict.fromkeys(
        (
            *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout"),
            *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
            *("velora_config", "monteclora_config", "qalora_group_size", "runtime_config"),
            *("merge_weights", "pet_surgery"),
        ),
        _HARMLESS,
    ),
    "init_lora_weights": _Rule(
        _keeps_base,
        "with this initialisation the adapter belongs to a base whose weights PEFT changed before the training",
        "Convert the adapter with save_pretrained(..., path_initial_model_for_weight_conversion=...); or, if BASE is "
        "that changed base, set init_lora_weights to true in the file",
    ),
    "megatron_config": _Rule(is_unset, "the layers are Megatron's, with weights in slices of their own"),
    "trainable_token_indices": _Rule(is_unset, "it replaces rows of the embedding, which is not supported"),
    "alora_invocation_tokens": _Rule(
        is_unset, "the adapter acts only behind these tokens, so no weight can hold it", "Serve it with PEFT or vLLM"
    ),
    "use_qalora": _Rule(
        is_unset, "QA-LoRA pools the inputs in groups, so A is not (rank, in)", "Serve it with the quantised base"
    ),
    "layer_replication": _Rule(is_unset, "the model has copies of the base's layers, each with an adapter of its own"),
    "target_parameters": _Rule(is_unset, "the names of adapted parameters depend on how PEFT nested its wrappers"),
    "use_bdlora": _Rule(_null, "A or B is block-diagonal, stored as its blocks"),
    "arrow_config": _Rule(_null, "the adapters are chosen for each token", "Serve it with PEFT"),
    "kasa_config": _Rule(_null, "the base's smallest singular values were removed before the training"),
    "enable_lora": _Rule(is_unset, "only parts of a fused weight are adapted (PEFT 0.2)"),
}


def _refused_option(source: str, name: str, value: Any) -> list[Problem]:
    rule = _RULES.get(name)
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    if rule is None:
        if is_unset(value):
            return []
        return [
            Problem(
                f"{source}: {name}",
                f"{shown}, an option of a PEFT version that is not known here",
                "an option whose meaning for the weights is known",
                _MERGE_WITH_PEFT,
            )
        ]
    return [] if rule.accepts(value) else [Problem(f"{source}: {name}", f"{shown}: {rule.reason}", "", rule.remedy)]


_MINDFORMERS_KEYS = frozenset(
    {
        *("base_model_name_or_path", "bias", "lora_alpha", "lora_bias", "lora_dropout", "peft_type", "r"),
        *("target_modules", "task_type"),
    }
)


def _is_by_mindformers(values: Mapping[str, Any]) -> bool:
    """Whether `LoraModel.save_pet_config` of MindFormers wrote the file: these keys, and a base called "none".

    `surgery.network` writes the same, and a section of its own.
    """
    return values.keys() - {"pet_surgery"} == _MINDFORMERS_KEYS and values["base_model_name_or_path"] == "none"


def _target_modules(options: Options) -> tuple[str, ...] | str | None:
    if _is_by_mindformers(options.values):
        # MindFormers splits its regular expression at each `|`; what it matched is the whole of it.
        expression = "|".join(options.names("target_modules"))
        options.expression("target_modules", expression)
        return expression
    return options.names_or_expression("target_modules")


def _expressions(options: Options, name: str, form: str) -> tuple[str, ...]:
    names = options.names(name)
    for pattern in names:
        options.expression(name, pattern, form)
    return names


def _layers_pattern(options: Options) -> tuple[str, ...] | str | None:
    names = options.names_or_expression("layers_pattern")
    for pattern in (names,) if isinstance(names, str) else names or ():
        options.expression("layers_pattern", pattern, LAYER_INDEX_PATTERN)
    return names
