"""Where in a base the weights that an adapter names are: as they are spelled, translated, or under another prefix.

The same network is saved as `model.layers.0...` by one program and as `layers.0...` by another, and Hugging Face and
MindFormers spell LLaMA-like layers differently. One rule is chosen for a whole adapter, never a rule for each key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from surgery.errors import MismatchError, Problem
from surgery.translation import naming_of, to_huggingface, to_mindformers

__all__ = ["Resolution", "resolve_names"]


@dataclass(frozen=True, slots=True)
class Resolution:
    """How an adapter's names were found in a base.

    Attributes:
        found: What was asked for, to the name in the base; what has none is left out.
        rule: What was done to the names, in words; empty where they are spelled alike.
        apply: The rule, for names that are to be made up.
    """

    found: Mapping[str, str]
    rule: str
    apply: Callable[[str], str]


_Rule = tuple[str, Callable[[str], str]]


def resolve_names(wanted: Mapping[str, tuple[str, ...]], base: Collection[str]) -> Resolution:
    """Find weights in a base by one rule for all of them: the one that finds the most.

    Names as they are spelled, or translated, come before names under another prefix.

    Args:
        wanted: Any identifier, to the names that its weight may have, likeliest first.
        base: The names in the base.

    Raises:
        MismatchError: Different prefixes find the most names, in different places.
    """
    spellings = _spellings(wanted, base)
    best = Resolution({}, "", _same)
    for rule in spellings:
        resolution = _resolved(rule, wanted, base)
        if len(resolution.found) == len(wanted):
            return resolution
        best = max(best, resolution, key=_count)
    prefixed = [_resolved(rule, wanted, base) for rule in _prefix_rules(spellings, wanted, base)]
    most = max(map(_count, prefixed), default=0)
    if most <= len(best.found):
        return best
    best, *others = (resolution for resolution in prefixed if len(resolution.found) == most)
    other = next((other for other in others if other.found != best.found), None)
    if other is not None:
        raise MismatchError(
            Problem(
                "the adapter's names",
                f"they fit the base in several ways: {best.rule}, or {other.rule}",
                "one way",
                "Rename the adapter's keys so that they begin as the base's do",
            )
        )
    return best


def _resolved(rule: _Rule, wanted: Mapping[str, tuple[str, ...]], base: Collection[str]) -> Resolution:
    description, apply = rule
    found = {key: name for key, names in wanted.items() if (name := _first(map(apply, names), base)) is not None}
    return Resolution(found, description, apply)


def _count(resolution: Resolution) -> int:
    return len(resolution.found)


def _spellings(wanted: Mapping[str, tuple[str, ...]], base: Collection[str]) -> list[_Rule]:
    spellings: list[_Rule] = [("", _same)]
    naming = naming_of(base)
    if naming is not None and naming_of([names[0] for names in wanted.values()]) not in (naming, None):
        translate = to_huggingface if naming == "huggingface" else to_mindformers
        spellings.append((f"translated to {naming} names", translate))
    return spellings


def _prefix_rules(
    spellings: list[_Rule], wanted: Mapping[str, tuple[str, ...]], base: Collection[str]
) -> Iterator[_Rule]:
    """The rules on first components; of those that put one before names, the ones that find anything."""
    prefixes: dict[str, set[str]] = {}
    for name in base:
        first, _, rest = name.partition(".")
        prefixes.setdefault(rest, set()).add(first)
    for description, spell in spellings:
        joined = f"{description} and " if description else ""
        yield f"{joined}without their first component", _strip(spell)
        spelled = (spell(name) for names in wanted.values() for name in names)
        for prefix in sorted({prefix for name in spelled if name for prefix in prefixes.get(name, ())}):
            yield f"{joined}behind '{prefix}.'", _prepend(spell, prefix)


def _same(name: str) -> str:
    return name


def _strip(spell: Callable[[str], str]) -> Callable[[str], str]:
    return lambda name: spell(name).partition(".")[2]


def _prepend(spell: Callable[[str], str], prefix: str) -> Callable[[str], str]:
    return lambda name: f"{prefix}.{spell(name)}"


def _first(names: Iterator[str], base: Collection[str]) -> str | None:
    return next((name for name in names if name in base), None)
