"""Which parameters are trained and which are frozen: by method, and by globs as MindPet has them.

A name that `include` matches is frozen, one that `exclude` matches is trained, and one that both match stays what it
was (`mindpet/graph/freeze_utils.py`, 1.0.4). Unlike there, a method's name may be written in upper case (`LoRA` freezes
everything in MindPet), what both lists match is reported, a glob may not stand in both or match nothing, what has no
gradient is never trained, and a network in which nothing is trained is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from surgery.documents import read_yaml
from surgery.errors import CorruptInputError, MismatchError, Problem, UsageError
from surgery.methods.base import Method, Target
from surgery.near import near_names
from surgery.options import Options

__all__ = [
    "FreezeDecision",
    "FreezeReport",
    "FreezeRules",
    "ParameterFacts",
    "decide_freezing",
    "parse_freeze_rules",
    "read_freeze_rules",
]


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """A parameter of a network.

    Attributes:
        name: Its name.
        is_trained: Whether it is trained at present.
        dtype: Its element type; one that is no floating-point type is never trained.
        elements: How many numbers it holds.
        nbytes: The bytes that they take.
    """

    name: str
    is_trained: bool = True
    dtype: str = "fp32"
    elements: int = 0
    nbytes: int = 0

    @property
    def has_gradient(self) -> bool:
        """Whether its type is one that can be trained."""
        return self.dtype in ("fp16", "bf16", "fp32", "fp64")


@dataclass(frozen=True, slots=True)
class FreezeRules:
    """Globs of parameters' names; upper and lower case differ.

    Attributes:
        include: What is frozen.
        exclude: What is trained.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FreezeDecision:
    """What becomes of a parameter.

    Attributes:
        parameter: The parameter as it was.
        is_trained: Whether it is trained from now on.
        reason: What decided.
        is_conflict: Whether `include` and `exclude` both match it, so that neither decided.
    """

    parameter: ParameterFacts
    is_trained: bool
    reason: str
    is_conflict: bool = False

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.parameter.name


@dataclass(frozen=True, slots=True)
class FreezeReport:
    """What was frozen and what is trained.

    Attributes:
        decisions: One a parameter, in the network's order.
    """

    decisions: tuple[FreezeDecision, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of what is trained."""
        return tuple(decision.name for decision in self.decisions if decision.is_trained)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of what is frozen."""
        return tuple(decision.name for decision in self.decisions if not decision.is_trained)

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of what is trained or frozen unlike before."""
        return tuple(
            decision.name for decision in self.decisions if decision.is_trained != decision.parameter.is_trained
        )

    @property
    def conflicts(self) -> tuple[FreezeDecision, ...]:
        """What both lists match."""
        return tuple(decision for decision in self.decisions if decision.is_conflict)

    def __str__(self) -> str:
        text = f"{len(self.trained)} parameters trained, {len(self.frozen)} frozen"
        if self.conflicts:
            text += f"; {len(self.conflicts)} left as they were, as include and exclude both match them"
        return text


def read_freeze_rules(path: str | os.PathLike[str]) -> FreezeRules:
    """Read `freeze: {include, exclude}` of a YAML, as MindPet's `freeze_from_config` does.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no YAML, or has no such section, or the section says something else.
    """
    values = read_yaml(path)
    if not isinstance(values.get("freeze"), dict):
        raise CorruptInputError(Problem(str(path), "no section `freeze`", "freeze: {include: [...], exclude: [...]}"))
    return parse_freeze_rules(values["freeze"], f"{path}: freeze")


def parse_freeze_rules(values: Mapping[str, Any], source: str = "freeze") -> FreezeRules:
    """The same of the section alone.

    Raises:
        CorruptInputError: A key is neither `include` nor `exclude`, or a value is no list of globs.
    """
    options = Options(source, dict(values))
    rules = FreezeRules(options.names("include"), options.names("exclude"))
    for key in values:
        if key not in ("include", "exclude"):
            options.problems.append(Problem(f"{source}: {key}", "an unknown key", "include or exclude"))
    options.check()
    return rules


def decide_freezing(
    parameters: Sequence[ParameterFacts], rules: FreezeRules = FreezeRules(), method: Method | None = None
) -> FreezeReport:
    """Decide for each parameter whether it is trained.

    Args:
        parameters: All parameters of the network.
        rules: Globs that are tried after the method.
        method: What it does not train is frozen.

    Raises:
        UsageError: There are no rules and no method.
        MismatchError: A glob stands in both lists or matches nothing, the method has no parameter in the network, or
            nothing is left to train.
    """
    if method is None and not rules.include and not rules.exclude:
        raise UsageError(Problem("freezing", "neither a method nor globs", "a pet_type, include or exclude"))
    problems = _problems_of(rules, parameters)
    if method is not None and not any(method.trains(one.name) and one.has_gradient for one in parameters):
        trains_what_is_there = method.target is Target.BIASES
        remedy = "Choose another method" if trains_what_is_there else "Add the method to the network first"
        found = f"no parameter of {method.title} ({', '.join(method.trained)})"
        problems.append(Problem("the network", found, remedy=remedy))
    if problems:
        raise MismatchError(problems)
    report = FreezeReport(tuple(_decide(parameter, rules, method) for parameter in parameters))
    if not report.trained:
        raise MismatchError(
            Problem("freezing", "nothing is left to train", "at least one parameter", "Freeze less with include")
        )
    return report


def _decide(parameter: ParameterFacts, rules: FreezeRules, method: Method | None) -> FreezeDecision:
    is_trained, reason = parameter.is_trained, "as it was"
    if method is not None:
        is_trained = method.trains(parameter.name)
        reason = f"trained by {method.title}" if is_trained else f"not of {method.title}"
    include, exclude = _first(rules.include, parameter.name), _first(rules.exclude, parameter.name)
    if include and exclude:
        reason = f"include ({include}) and exclude ({exclude}) both match: {reason}"
    elif include:
        is_trained, reason = False, f"frozen by {include}"
    elif exclude:
        is_trained, reason = True, f"trained by {exclude}"
    if is_trained and not parameter.has_gradient:
        is_trained, reason = False, f"{parameter.dtype} has no gradient"
    return FreezeDecision(parameter, is_trained, reason, is_conflict=bool(include and exclude))


def _first(patterns: Sequence[str], name: str) -> str:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), "")


def _problems_of(rules: FreezeRules, parameters: Sequence[ParameterFacts]) -> list[Problem]:
    names = [parameter.name for parameter in parameters]
    problems = [
        Problem("include and exclude", f"{pattern!r} in both", "a glob in one of them", "Remove it from one")
        for pattern in rules.include
        if pattern in rules.exclude
    ]
    for where, patterns in (("include", rules.include), ("exclude", rules.exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = near_names(pattern.replace("*", "").strip("."), names)
                remedy = f"Near names: {', '.join(near)}" if near else "Remove it"
                problems.append(Problem(where, f"{pattern!r} matches no parameter", remedy=remedy))
    return problems
