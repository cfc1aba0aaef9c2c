"""Which tensors of a tuned checkpoint are the trained delta, which are the base, and which only training needs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from surgery.errors import MismatchError, Problem, UsageError
from surgery.methods import known_methods, method_of
from surgery.naming import ParameterName, Role, classify
from surgery.near import near_names
from surgery.spelling import FAMILIES, spell

__all__ = ["Choice", "Selected", "select"]

# What training needs or leaves behind, and nobody afterwards.
_STATES = frozenset({Role.OPTIMIZER, Role.SCALAR, Role.TRAINING_AID, Role.SUPERSEDED})
_LORA = frozenset(
    {
        *(Role.LORA_A, Role.LORA_B, Role.LORA_MAGNITUDE, Role.LORA_B_BIAS),
        *(Role.EMBEDDING_A, Role.EMBEDDING_B, Role.EXPERT_A, Role.EXPERT_B),
    }
)
_ROLES = {
    "lora": _LORA,
    "ptuning2": frozenset({Role.PTUNING2}),
    "prefixtuning": frozenset({Role.PREFIX}),
    "adapter": frozenset({Role.BOTTLENECK}),
    "low_rank_adapter": frozenset({Role.LOW_RANK_ADAPTER}),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user wants of a checkpoint.

    Attributes:
        pet_type: The method whose parameters are the delta; empty for those of every method that is seen by its names.
        include: Globs (`fnmatch`) of parameters that are part of the delta besides: weights that were trained whole.
        exclude: Globs of parameters that are not.
        saved_modules: Modules that, as the adapter's configuration says, were trained and saved whole.
    """

    pet_type: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    saved_modules: tuple[str, ...] = ()

    def takes(self, parameter: ParameterName, names: Container[str]) -> bool:
        """Whether a parameter is of the delta.

        Args:
            parameter: The parameter.
            names: All keys of the checkpoint.
        """
        name, role = parameter.name, parameter.role
        if role in (Role.OPTIMIZER, Role.SCALAR) or _matches(name, self.exclude):
            return False
        if _matches(name, self.include):
            return True
        if not self.pet_type:
            # A PEFT adapter's plain weights were saved with it; a network's checkpoint has its base under plain names.
            is_saved = parameter.family == "peft" or self._saves(parameter, names)
            return is_saved if role is Role.WEIGHT else role not in _STATES
        if self.pet_type in _ROLES:
            return role in _ROLES[self.pet_type] or (self.pet_type == "lora" and self._saves(parameter, names))
        return role not in (Role.TRAINING_AID, Role.SUPERSEDED) and method_of(self.pet_type).trains(name)

    def _saves(self, parameter: ParameterName, names: Container[str]) -> bool:
        """Whether a plain weight is of a module that was trained whole; PEFT compares the ends of modules' names.

        The bias of an adapted layer is never among those modules: it was saved because it was trained, where the
        layer's weight is not saved with it.
        """
        if parameter.role is not Role.WEIGHT:
            return False
        layer = parameter.layer
        is_alone = parameter.name == f"{layer}.bias" and f"{layer}.weight" not in names
        return (is_alone and _has_lora(layer, names)) or any(
            layer == module or layer.endswith(f".{module}") for module in self.saved_modules
        )


@dataclass(frozen=True, slots=True)
class Selected:
    """The tensors of a checkpoint, each in one place.

    Attributes:
        delta: The trained delta.
        rest: The base.
        dropped: Optimizer states, training scalars, and what a method's training leaves behind; with what they are.
    """

    delta: tuple[ParameterName, ...]
    rest: tuple[ParameterName, ...]
    dropped: tuple[ParameterName, ...]


def select(names: Iterable[str], choice: Choice, where: str) -> Selected:
    """Tell the delta apart.

    Args:
        names: The checkpoint's keys.
        choice: What the user wants.
        where: What to call the checkpoint in an error.

    Raises:
        UsageError: There is no such method.
        MismatchError: Nothing is left of the delta, or a glob matches nothing.
    """
    if choice.pet_type and choice.pet_type not in (known := [method.pet_type for method in known_methods()]):
        near = near_names(choice.pet_type, known)
        remedy = f"Is it {' or '.join(near)}?" if near else ""
        raise UsageError(Problem("--pet-type", choice.pet_type, ", ".join(known), remedy))
    ordered = list(names)
    together = frozenset(ordered)
    parameters = [classify(name, together) for name in ordered]
    delta = tuple(one for one in parameters if choice.takes(one, together))
    taken = {one.name for one in delta}
    rest = tuple(one for one in parameters if one.name not in taken and one.role not in _STATES)
    dropped = tuple(one for one in parameters if one.name not in taken and one.role in _STATES)
    problems = _idle_globs("--include", choice.include, ordered) + _idle_globs("--exclude", choice.exclude, ordered)
    if not delta and not problems:
        problems = [_no_delta(where, choice, parameters)]
    if problems:
        raise MismatchError(problems)
    return Selected(delta, rest, dropped)


def _has_lora(layer: str, names: Container[str]) -> bool:
    """Whether a layer has an A, in any spelling."""
    spellings = (spell(Role.LORA_A, layer, family) for family in FAMILIES)
    return any(name in names for name in spellings if name is not None)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _idle_globs(option: str, globs: Sequence[str], names: Sequence[str]) -> list[Problem]:
    problems = []
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            near = near_names(glob.strip("*."), names)
            remedy = (
                f"Is it meant for {' or '.join(near)}?" if near else "See the names with pet-split --dry-run --json"
            )
            problems.append(Problem(f"{option} {glob}", "no parameter that it matches", "one at least", remedy))
    return problems


def _no_delta(where: str, choice: Choice, parameters: Sequence[ParameterName]) -> Problem:
    kinds = sorted({one.role.value for one in parameters if one.role not in (Role.WEIGHT, *_STATES)})
    if kinds:
        found = f"{', '.join(kinds)}, and nothing of {choice.pet_type or 'what was asked for'}"
        return Problem(where, found, "parameters that training added", "Choose another --pet-type, or none")
    return Problem(
        where,
        "weights alone, and no parameter that a tuning method added",
        "parameters that training added",
        "Of a full fine-tune extract a LoRA: --base BASE --rank N; biases are taken with --pet-type bitfit, weights "
        "that were trained whole with --include PATTERN",
    )
