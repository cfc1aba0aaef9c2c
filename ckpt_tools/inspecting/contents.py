"""What a checkpoint holds, by the names, shapes and types in its headers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.safetensors import HeaderTensors
from ckpt_tools.reports import InspectedTensor, InspectedTotal, OtherShape, RankGroup
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.naming import Role, classify

__all__ = ["differences_of_ranks", "groups_of_ranks", "scalars_of", "tensors_of", "totals_of"]

GROUPS = ("weight", "adapter", "optimizer", "scalar", "other")
_GROUP_OF = {
    Role.WEIGHT: "weight",
    Role.OPTIMIZER: "optimizer",
    Role.SCALAR: "scalar",
    Role.TRAINING_AID: "other",
    Role.SUPERSEDED: "other",
}
_NOT_NUMBERS = ("str", "int4", "hifloat8", "complex64", "complex128")


def tensors_of(
    tensors: Mapping[str, LazyTensor],
    parts: Mapping[str, tuple[int, ...]],
    selects: Callable[[str], bool],
) -> tuple[InspectedTensor, ...]:
    """The tensors of a checkpoint.

    Args:
        tensors: Name to tensor.
        parts: Name to the number of parts on each axis.
        selects: Whether a name is of interest.
    """
    found = []
    for name, tensor in tensors.items():
        if selects(name):
            parameter = classify(name, tensors)
            role = f"{parameter.role.value}: {parameter.method}" if parameter.method else parameter.role.value
            group = _GROUP_OF.get(parameter.role, "adapter")
            found.append(
                InspectedTensor(
                    name,
                    group,
                    role,
                    parameter.family,
                    parameter.layer,
                    tensor.shape,
                    tensor.dtype.name,
                    tensor.nbytes,
                    parts.get(name, ()),
                )
            )
    return tuple(found)


def totals_of(tensors: Iterable[InspectedTensor]) -> tuple[InspectedTotal, ...]:
    """Sums by group and type: groups in a fixed order, types by their bytes, the largest first."""
    sums: dict[tuple[str, str], list[int]] = {}
    for tensor in tensors:
        entry = sums.setdefault((tensor.group, tensor.dtype), [0, 0, 0])
        for index, count in enumerate((1, math.prod(tensor.shape), tensor.nbytes)):
            entry[index] += count
    ordered = sorted(sums, key=lambda key: (GROUPS.index(key[0]), -sums[key][2], key[1]))
    return tuple(InspectedTotal(*key, *sums[key]) for key in ordered)


def scalars_of(tensors: Mapping[str, LazyTensor], selects: Callable[[str], bool]) -> dict[str, float]:
    """The values of training scalars, as the step and the scale of the loss: a few bytes each."""
    found = {}
    for name, tensor in tensors.items():
        is_scalar = tensor.size == 1 and classify(name, tensors).role is Role.SCALAR and selects(name)
        if is_scalar and tensor.dtype.name not in _NOT_NUMBERS:
            found[name] = float(tensor.read_all().reshape(-1)[0].astype(np.float64))
    return found


def groups_of_ranks(ranks: Sequence[Checkpoint], selects: Callable[[str], bool]) -> tuple[RankGroup, ...]:
    """Ranks whose headers are alike, by their first rank."""
    grouped = _grouped(ranks)
    holders = Counter(name for members in grouped for name in ranks[members[0]].tensors)
    found = []
    for members in grouped:
        tensors = {name: tensor for name, tensor in ranks[members[0]].tensors.items() if selects(name)}
        own = tuple(name for name in tensors if holders[name] < len(grouped))
        found.append(RankGroup(tuple(members), len(tensors), sum(tensor.nbytes for tensor in tensors.values()), own))
    return tuple(found)


def differences_of_ranks(ranks: Sequence[Checkpoint], selects: Callable[[str], bool]) -> tuple[OtherShape, ...]:
    """Tensors that are not of one shape and type on all ranks that hold them."""
    firsts = [ranks[members[0]].tensors for members in _grouped(ranks)]
    found = []
    for name in dict.fromkeys(name for tensors in firsts for name in tensors):
        held = [tensors.get(name) for tensors in firsts]
        kinds = {(tensor.shape, tensor.dtype) for tensor in held if tensor is not None}
        if len(kinds) > 1 and selects(name):
            shapes = tuple(() if tensor is None else tensor.shape for tensor in held)
            dtypes = tuple("" if tensor is None else tensor.dtype.name for tensor in held)
            found.append(OtherShape(name, shapes, dtypes))
    return tuple(found)


def _grouped(ranks: Sequence[Checkpoint]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    known: dict[int, object] = {}  # files with one header share its parsed form
    for number, rank in enumerate(ranks):
        tensors = rank.tensors
        place = id(tensors.places) if isinstance(tensors, HeaderTensors) else None
        key = known.get(place) if place is not None else None
        if key is None:
            key = frozenset((name, tensor.shape, tensor.dtype.name) for name, tensor in tensors.items())
            if place is not None:
                known[place] = key
        groups.setdefault(key, []).append(number)
    return list(groups.values())
