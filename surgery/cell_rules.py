r"""Which cells of a network a rule selects, as MindFormers walks through it, and by full paths.

MindFormers (`pet/tuners/lora_adapter.py`, alike in 1.3.2 and 1.9.0) walks down from a cell and tries `re.match` on the
name that each cell has in its parent: an excluded cell is left with all that is in it, and of a selected one that is no
linear layer nothing is looked at any more. No such name has a dot, so a rule that asks for one (`\.`) is a rule on
paths: it must match all of a path, from the network's own attributes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import MismatchError, Problem
from surgery.expressions import fullmatch, match
from surgery.near import near_names

__all__ = [
    "BODIES",
    "DEFAULT_TARGETS",
    "CellFacts",
    "CellRule",
    "SelectedCells",
    "SkippedCell",
    "exclusion_of",
    "is_on_paths",
    "select_cells",
]

BODIES = ("network", "backbone", "model", "transformer", "llm_model", "language_model")
"""The attributes of a network at whose first one MindFormers begins to walk (`LoraModel.add_adapter`)."""

# MindFormers' rule where a configuration has none (`LoraAdapter.get_pet_model`), and the design document's.
DEFAULT_TARGETS = r".*dense*|.*linear*"

_ASKS_FOR_DOT = re.compile(r"(?<!\\)(?:\\\\)*(?:\\\.|\[\.\])")
_NOT_OF_NAMES = re.compile(r"\\.|[^\w.|]")
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class CellFacts:
    """A cell of a network.

    Attributes:
        path: Its attributes from the network down, with dots between.
        obstacle: Why it cannot be replaced, as "a LayerNorm, which is no linear layer"; empty where it can.
    """

    path: str
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class CellRule:
    """A rule that selects cells.

    Attributes:
        target: A regular expression of cells to replace.
        exclude: Regular expressions of cells to leave, with all that is in them.
    """

    target: str
    exclude: tuple[str, ...] = ()

    @property
    def is_on_paths(self) -> bool:
        """Whether it is tried on paths."""
        return is_on_paths(self.target)


@dataclass(frozen=True, slots=True)
class SkippedCell:
    """A cell that was left as it is although something spoke for it.

    Attributes:
        path: The cell.
        reason: Why it was left.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SelectedCells:
    """What a rule selects.

    Attributes:
        paths: The cells to replace, in the network's order.
        skipped: Cells that the rule's expression matches, but which are left.
    """

    paths: tuple[str, ...]
    skipped: tuple[SkippedCell, ...]


def select_cells(rule: CellRule, cells: Sequence[CellFacts], *, body: str = "") -> SelectedCells:
    """The cells that a rule selects.

    Args:
        rule: The rule.
        cells: All cells of the network below its root, each behind the one that it is in.
        body: The path of the cell from which MindFormers walks down, as `model`; empty for the network itself. To a
            rule on paths it means nothing.

    Raises:
        MismatchError: The rule selects nothing; the message has near names.
    """
    selected, skipped = [], []
    for cell in cells:
        reason = _selected_on_paths(rule, cell) if rule.is_on_paths else _selected_on_names(rule, cell, body)
        if reason == "":
            selected.append(cell.path)
        elif reason is not None:
            skipped.append(SkippedCell(cell.path, reason))
    if not selected:
        raise MismatchError(_nothing_selected(rule, cells, skipped, body))
    return SelectedCells(tuple(selected), tuple(skipped))


def is_on_paths(expression: str) -> bool:
    """Whether an expression asks for a dot, which no cell's own name has."""
    return _ASKS_FOR_DOT.search(expression) is not None


def _selected_on_paths(rule: CellRule, cell: CellFacts) -> str | None:
    """Why a cell is left: empty where it is selected, None where the rule does not speak of it."""
    if not fullmatch(rule.target, cell.path):
        return None
    components = cell.path.split(".")
    for depth in range(1, len(components) + 1):
        excluded = exclusion_of(rule.exclude, components[:depth])
        if excluded:
            return excluded
    return _obstacle(cell)


def _selected_on_names(rule: CellRule, cell: CellFacts, body: str) -> str | None:
    """The same by MindFormers' walk from the body."""
    components = cell.path.split(".")
    begin = len(body.split(".")) if body else 0
    if components[:begin] != (body.split(".") if body else []):
        if not cell.obstacle and match(rule.target, components[-1]):
            return f"outside of {body!r}, where MindFormers' rules begin; a rule on paths reaches it"
        return None
    if len(components) == begin or not match(rule.target, components[-1]):
        return None
    for depth in range(begin + 1, len(components) + 1):
        excluded = exclusion_of(rule.exclude, components[:depth])
        if excluded:
            return excluded
        if depth < len(components) and match(rule.target, components[depth - 1]):
            container = ".".join(components[:depth])
            return f"inside of {container!r}, which the rule selects and which is no linear layer"
    return _obstacle(cell)


def exclusion_of(patterns: Sequence[str], components: Sequence[str]) -> str:
    """Which of some expressions leaves a cell as it is, with all that is in it: in words, empty where none does.

    Args:
        patterns: The expressions; those that ask for a dot are tried on the path, others on the cell's own name.
        components: The cell's path.
    """
    path = ".".join(components)
    for pattern in patterns:
        found = fullmatch(pattern, path) if is_on_paths(pattern) else match(pattern, components[-1])
        if found:
            return f"excluded by exclude_layers ({pattern}, which matches {path!r})"
    return ""


def _obstacle(cell: CellFacts) -> str:
    return f"is {cell.obstacle}" if cell.obstacle else ""


def _nothing_selected(rule: CellRule, cells: Sequence[CellFacts], skipped: list[SkippedCell], body: str) -> Problem:
    linear = [cell.path for cell in cells if not cell.obstacle]
    reasons = "; ".join(f"{cell.path} {cell.reason}" for cell in skipped[:_SHOWN])
    if not linear:
        found = "a network without a linear layer that can be replaced"
        return Problem("target_modules", f"{found} ({reasons})" if reasons else found, "one to change")
    if skipped:
        return Problem("target_modules", f"{rule.target!r} selects no layer: {reasons}", remedy="Change the rule")
    within = [path for path in linear if path.startswith(f"{body}.")] if body and not rule.is_on_paths else linear
    names = within if rule.is_on_paths else list(dict.fromkeys(path.rpartition(".")[2] for path in within or linear))
    wanted = [word for word in _NOT_OF_NAMES.sub("", rule.target).strip(".").split("|") if word]
    near = list(dict.fromkeys(name for word in wanted for name in near_names(word.strip("."), names, n=2)))
    if near:
        remedy = f"Near names: {', '.join(near[:_SHOWN])}"
    else:
        remedy = f"Linear layers: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
    tried = "path" if rule.is_on_paths else "name"
    return Problem("target_modules", f"{rule.target!r} matches the {tried} of no linear layer", remedy=remedy)
