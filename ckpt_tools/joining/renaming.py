"""One adapter's names in the spelling of another's."""

from __future__ import annotations

from collections.abc import Callable

from surgery.grouping import LoraGroup, LoraPair
from surgery.resolution import resolve_names
from surgery.translation import naming_of, to_huggingface, to_mindformers

__all__ = ["layer_under", "names_like"]

Rename = Callable[[str], str]


def names_like(first: LoraGroup, other: LoraGroup) -> tuple[Rename, str]:
    """Find out how another adapter's names of the base's weights become those that a first adapter uses.

    They are translated as a whole, and brought behind the prefix under which most of them are the first adapter's, by
    the rules that find an adapter's weights in a base.

    Args:
        first: The adapter whose spelling counts.
        other: The adapter to be renamed.

    Returns:
        What renames a weight; what was done, in words, empty where nothing was.

    Raises:
        MismatchError: Different prefixes fit as well.
    """
    known = [pair.bases[0] for pair in first.pairs]
    own = {pair.a: pair.bases for pair in other.pairs}
    ours, theirs = naming_of(known), naming_of([names[0] for names in own.values()])
    is_other = theirs is not None and ours is not None and theirs != ours
    translate: Rename = (to_huggingface if ours == "huggingface" else to_mindformers) if is_other else str
    resolution = resolve_names({key: tuple(map(translate, names)) for key, names in own.items()}, known)
    words = [f"translated to {ours} names"] if is_other else []
    words += [resolution.rule] if resolution.rule else []
    return lambda name: resolution.apply(translate(name)), ", ".join(words)


def layer_under(pair: LoraPair, rename: Rename) -> str:
    """A pair's layer, renamed: by its weight's name, as some modules are translated by their parameters alone."""
    weight = pair.bases[0]
    if pair.kind == "expert":
        return rename(weight)
    return rename(weight).rpartition(".")[0] if weight.startswith(f"{pair.layer}.") else rename(pair.layer)
