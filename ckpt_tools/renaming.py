"""New names for the tensors of an output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ckpt_tools.formats.model import NamedTensor
from surgery.errors import MismatchError, Problem
from surgery.translation import fused_parts, load_name_map, naming_of, to_huggingface, to_mindformers

__all__ = ["rename_tensors"]


def rename_tensors(tensors: Sequence[NamedTensor], names: str) -> tuple[list[NamedTensor], dict[str, str]]:
    """Give tensors other names.

    Args:
        tensors: What is renamed, in order.
        names: `keep`, `hf`, `mindformers`, or the path of a JSON object of old and new names.

    Returns:
        The tensors under their new names, in the same order; old name to new name, for those that changed.

    Raises:
        InputMissingError: The JSON file is not there.
        CorruptInputError: It is no object of names.
        MismatchError: A name in the file is not in the checkpoint, two tensors would have one name, or a network is
            not one whose names are known.
    """
    if names == "keep":
        return list(tensors), {}
    old_names = [name for name, _ in tensors]
    if names in ("hf", "mindformers"):
        translate = to_huggingface if names == "hf" else to_mindformers
        wanted = "huggingface" if names == "hf" else "mindformers"
        new_names = [translate(name) for name in old_names]
        fused = next((name for name in old_names if names == "hf" and fused_parts(name)), None)
        if fused is not None:
            raise MismatchError(
                Problem(
                    f"--names hf, {fused}",
                    f"the rows of {', '.join(fused_parts(fused))} fused in an order that depends on the run's settings",
                    "weights that are not fused",
                    "Unfuse them with MindFormers first, or train with qkv_concat: False",
                )
            )
        if naming_of(new_names) != wanted:
            raise MismatchError(
                Problem(
                    f"--names {names}",
                    "a network whose names are not known",
                    "a LLaMA-like network",
                    "Give a JSON file of old and new names",
                )
            )
    else:
        table = load_name_map(names)
        known = set(old_names)
        unknown = [name for name in table if name not in known]
        if unknown:
            found = "a name that the checkpoint does not have"
            raise MismatchError(
                Problem(f"{names}, {name}", found, remedy="Correct it or leave it out") for name in unknown
            )
        new_names = [table.get(name, name) for name in old_names]
    twice = [name for name, count in Counter(new_names).items() if count > 1]
    if twice:
        raise MismatchError(Problem(f"--names {names}, {name}", "the new name of several tensors") for name in twice)
    renamed = {old: new for old, new in zip(old_names, new_names, strict=True) if old != new}
    return [(new, tensor) for new, (_, tensor) in zip(new_names, tensors, strict=True)], renamed
