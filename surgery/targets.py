"""Which layers a LoRA configuration selects, by the rules of the program that trained with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from surgery import expressions
from surgery.cell_rules import BODIES, exclusion_of, is_on_paths
from surgery.config import LAYER_INDEX_PATTERN, SAVED_MODULE_PATTERN, LoraConfig, Selection

__all__ = ["Verdict", "selects"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a layer is selected, and why; true or false as a condition.

    Attributes:
        selected: Whether it is.
        reason: What decided, to be put behind the layer's name in a message.
    """

    selected: bool
    reason: str

    def __bool__(self) -> bool:
        return self.selected


_ALL_LINEAR = "all-linear"


def selects(config: LoraConfig, layer: str, *, is_linear: bool = True, is_output_head: bool = False) -> Verdict:
    """Whether a configuration selects a layer.

    Args:
        config: The configuration; its `selection` says whose rules hold.
        layer: The module's name in the base model; of an expert weight the module that has it.
        is_linear: Whether the module is a linear layer; `all-linear` asks for it.
        is_output_head: Whether it is the output head, which `all-linear` leaves out.
    """
    if config.selection is Selection.PEFT:
        return _selects_as_peft(config, layer, is_linear=is_linear, is_output_head=is_output_head)
    return _selects_as_mindformers(config, layer, is_linear=is_linear)


def _selects_as_peft(config: LoraConfig, layer: str, *, is_linear: bool, is_output_head: bool) -> Verdict:
    """The rules of `check_target_module_exists` in PEFT 0.21.2 (`tuners/tuners_utils.py`)."""
    excluded = _matches_names(config.exclude_modules or (), layer)
    if excluded:
        return Verdict(False, f"is excluded by exclude_modules ({excluded})")
    for module in config.modules_to_save:
        if expressions.match(SAVED_MODULE_PATTERN.replace("{}", module), layer):
            return Verdict(False, f"was trained whole by modules_to_save ({module})")
    if config.target_modules is None:
        return Verdict(False, "cannot be selected: the configuration has no target_modules")
    if isinstance(config.target_modules, str) and config.target_modules.lower() == _ALL_LINEAR:
        if not is_linear:
            return Verdict(False, "is no linear layer, and target_modules is all-linear")
        if is_output_head:
            return Verdict(False, "is the output head, which all-linear leaves out")
        return Verdict(True, "is a linear layer, and target_modules is all-linear")
    target = _matches_names(config.target_modules, layer)
    if not target:
        return Verdict(False, "is not among target_modules")
    verdict = Verdict(True, f"is among target_modules ({target})")
    # A name given in full is selected whatever the layers that the rest is limited to.
    if isinstance(config.target_modules, str) or layer in config.target_modules:
        return verdict
    return verdict if _is_in_layers(config, layer) else Verdict(False, "is not among layers_to_transform")


def _matches_names(names: tuple[str, ...] | str, layer: str) -> str:
    """The entry that selects a layer: the expression that matches all of it, or the name that ends it."""
    if isinstance(names, str):
        return names if expressions.fullmatch(names, layer) else ""
    return next((name for name in names if layer == name or layer.endswith(f".{name}")), "")


def _is_in_layers(config: LoraConfig, layer: str) -> bool:
    indices = config.layers_to_transform
    if indices is None or indices == ():
        return True
    patterns = (config.layers_pattern,) if isinstance(config.layers_pattern, str) else config.layers_pattern
    if not config.layers_pattern:
        # The first number is the layer's; a later one may be an expert's.
        found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", layer)
    else:
        matches = (expressions.match(LAYER_INDEX_PATTERN.replace("{}", pattern), layer) for pattern in patterns or ())
        found = next((match for match in matches if match), None)
    if found is None:
        return False
    index = int(found["index"])
    return index == indices if isinstance(indices, int) else index in indices


def _selects_as_mindformers(config: LoraConfig, layer: str, *, is_linear: bool) -> Verdict:
    """MindFormers' rules.

    Graph mode (`pet/tuners/lora_adapter.py` and `pet/models/lora.py`, 1.9.0) walks down from the network's body and
    tries `re.match` on the name that each cell has in its parent: an excluded cell is left with all that is in it, and
    of a selected one that is no linear layer nothing is looked at any more. PyNative (`pynative/pet/lora_adapter.py`,
    2.1) tries `re.search` on the path, and excludes a cell with all that is in it likewise. A rule that asks for a dot
    is one of `surgery.network`, on paths: see `surgery.cell_rules`.
    """
    expression = config.target_modules
    exclusions = config.exclude_modules or ()
    exclusions = (exclusions,) if isinstance(exclusions, str) else exclusions
    if not isinstance(expression, str):
        return Verdict(False, "cannot be selected: the configuration has no target_modules")
    components = layer.split(".")
    by_path = config.selection is Selection.MINDFORMERS_PYNATIVE
    on_paths = not by_path and is_on_paths(expression)
    has_body = not by_path and not on_paths and len(components) > 1 and components[0] in BODIES
    for depth in range(2 if has_body else 1, len(components) + 1):
        excluded = _exclusion(exclusions, components[:depth], by_path=by_path)
        if excluded:
            return Verdict(False, f"is {excluded}")
        if depth < len(components) and not by_path and not on_paths:
            name = components[depth - 1]
            if expressions.match(expression, name):
                return Verdict(
                    False, f"is inside of {name!r}, which target_modules selects but which is no linear layer"
                )
    if by_path:
        selected = expressions.search(expression, layer)
    else:
        selected = (
            expressions.fullmatch(expression, layer) if on_paths else expressions.match(expression, components[-1])
        )
    if not selected:
        return Verdict(False, f"is not selected by target_modules ({expression})")
    if not is_linear:
        return Verdict(False, f"is no linear layer, though target_modules selects it ({expression})")
    return Verdict(True, f"is selected by target_modules ({expression})")


def _exclusion(patterns: tuple[str, ...], components: list[str], *, by_path: bool) -> str:
    if not by_path:
        return exclusion_of(patterns, components)
    path = ".".join(components)
    found = next((pattern for pattern in patterns if expressions.search(pattern, path)), "")
    return f"excluded by exclude_layers ({found}, which matches {path!r})" if found else ""
