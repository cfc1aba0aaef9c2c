"""Freezing on live networks; what is decided, `surgery.freezing` decides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.freezing import (
    FreezeReport,
    FreezeRules,
    ParameterFacts,
    decide_freezing,
    parse_freeze_rules,
    read_freeze_rules,
)
from surgery.methods import Method, method_of
from surgery.network.layers import dtype_name
from surgery.network.packages import Cell

__all__ = ["facts_of", "freeze", "freeze_from_config"]


def freeze(
    network: Cell,
    pet_type: str | Method | None = None,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> FreezeReport:
    """Freeze a network's parameters, by method, by globs, or by both.

    Args:
        network: The network; changed in place.
        pet_type: What this method does not train is frozen.
        include: Globs of parameters to freeze.
        exclude: Globs of parameters to train.

    Returns:
        What was decided for each parameter, and why.

    Raises:
        MismatchError: As of `surgery.freezing.decide_freezing`.
    """
    rules = parse_freeze_rules({"include": _listed(include), "exclude": _listed(exclude)}, "freeze")
    return _apply(network, rules, pet_type)


def freeze_from_config(network: Cell, config: str | os.PathLike[str] | Mapping[str, Any]) -> FreezeReport:
    """Freeze by a YAML's `freeze: {include, exclude}`, or by such a section.

    Args:
        network: The network; changed in place.
        config: The YAML's path, or the section.
    """
    rules = parse_freeze_rules(config) if isinstance(config, Mapping) else read_freeze_rules(config)
    return _apply(network, rules, None)


def facts_of(parameter: Any) -> ParameterFacts:
    """What is to be known of a parameter."""
    return ParameterFacts(
        parameter.name,
        bool(parameter.requires_grad),
        dtype_name(parameter.dtype),
        int(parameter.size),
        int(parameter.size) * int(parameter.itemsize),
    )


def _apply(network: Cell, rules: FreezeRules, pet_type: str | Method | None) -> FreezeReport:
    parameters = list(network.get_parameters())
    method = method_of(pet_type) if isinstance(pet_type, str) else pet_type
    report = decide_freezing([facts_of(parameter) for parameter in parameters], rules, method)
    for parameter, decision in zip(parameters, report.decisions, strict=True):
        parameter.requires_grad = decision.is_trained
    return report


def _listed(patterns: Any) -> Any:
    return list(patterns) if isinstance(patterns, (list, tuple)) else patterns
