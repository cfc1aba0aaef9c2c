"""An adapter's parameters put together by layer: pairs of A and B, what goes with them, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from surgery.errors import Problem
from surgery.naming import ParameterName, Role, classify

__all__ = ["LoraGroup", "LoraPair", "group_lora"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The low-rank update of one weight.

    Attributes:
        layer: The module, as `ParameterName.layer`.
        family: How its parameters are spelled.
        kind: `linear`: A (rank, in), B (out, rank). `embedding`: A (rank, entries), B (width, rank), added transposed.
            `conv`: A `(rank, in, *kernel)`, B (out, rank, 1, ...). `expert`: A (experts, in, rank), B (experts, rank,
            out).
        rank: Read from the shapes.
        a: Key of A.
        b: Key of B.
        magnitude: Key of DoRA's magnitude vector.
        b_bias: Key of B's bias, which is added to the layer's bias.
        bases: Names that the weight may have in the base, likeliest first.
    """

    layer: str
    family: str
    kind: str
    rank: int
    a: str
    b: str
    magnitude: str | None = None
    b_bias: str | None = None
    bases: tuple[str, ...] = ()

    @property
    def bias_base(self) -> str:
        """Name of the bias that `b_bias` is added to."""
        return f"{self.layer}.bias" if self.layer else "bias"


@dataclass(frozen=True, slots=True)
class LoraGroup:
    """All parameters of an adapter, or of a checkpoint that holds one, each in exactly one place.

    Attributes:
        pairs: The updates, ordered by their first key.
        weights: Plain weights: of an adapter the ones that replace the base's (PEFT's `modules_to_save`, `bias` and
            saved embeddings), of a combined checkpoint the base.
        methods: Parameters of methods that fold into no weight (prompts, bottlenecks, LoHa, ...).
        states: Optimizer states and training scalars.
        dropped: What PEFT's own merge ignores: training aids, and copies that `modules_to_save` supersedes.
        problems: What does not fit, each with its remedy.
    """

    pairs: tuple[LoraPair, ...]
    weights: tuple[ParameterName, ...]
    methods: tuple[ParameterName, ...]
    states: tuple[ParameterName, ...]
    dropped: tuple[ParameterName, ...]
    problems: tuple[Problem, ...]


_A_ROLES = {Role.LORA_A: "linear", Role.EMBEDDING_A: "embedding", Role.EXPERT_A: "expert"}
_B_ROLES = {Role.LORA_B: "linear", Role.EMBEDDING_B: "embedding", Role.EXPERT_B: "expert"}
_METHOD_ROLES = frozenset(
    {Role.PREFIX, Role.PTUNING2, Role.BOTTLENECK, Role.LOW_RANK_ADAPTER, Role.OTHER_METHOD},
)
_UNGATHERED = (
    "Save the adapter again with its shards gathered (DeepSpeed ZeRO-3 and FSDP leave such tensors behind otherwise)"
)

# So PEFT spells what it adds to the `out_proj` of a torch.nn.MultiheadAttention, and nothing else.
_MULTIHEAD_OUTPUT = ".base_layer.out_proj."


def group_lora(names: Iterable[str], shapes: Mapping[str, Shape]) -> LoraGroup:
    """Put an adapter's parameters together by layer.

    Args:
        names: Keys of the adapter, or of a checkpoint that holds base and adapter.
        shapes: Key to shape; must have all of `names`.
    """
    ordered = list(names)
    known = frozenset(ordered)
    parts: dict[tuple[str, str], dict[str, ParameterName]] = {}
    placed: dict[str, list[ParameterName]] = {"weights": [], "methods": [], "states": [], "dropped": []}
    problems: list[Problem] = []
    for name in ordered:
        parameter = classify(name, known)
        place = _place(parameter.role)
        if place is not None:
            placed[place].append(parameter)
            continue
        part = parts.setdefault((parameter.layer, _kind(parameter.role)), {})
        slot = _slot(parameter.role)
        if slot in part:
            problems.append(_twice(part[slot], parameter))
        else:
            part[slot] = parameter
    _attach_magnitudes(parts)

    pairs = []
    for (_, kind), part in parts.items():
        pair, faults = _pair(kind, part, shapes)
        problems += faults
        if pair is not None and _MULTIHEAD_OUTPUT in pair.a:
            problems.append(_multihead(pair))
        elif pair is not None:
            pairs.append(pair)
    problems += _same_weight_twice(pairs)
    return LoraGroup(
        pairs=tuple(pairs),
        weights=tuple(placed["weights"]),
        methods=tuple(placed["methods"]),
        states=tuple(placed["states"]),
        dropped=tuple(placed["dropped"]),
        problems=tuple(problems),
    )


def _place(role: Role) -> str | None:
    if role is Role.WEIGHT:
        return "weights"
    if role in _METHOD_ROLES:
        return "methods"
    if role in {Role.OPTIMIZER, Role.SCALAR}:
        return "states"
    return "dropped" if role in {Role.TRAINING_AID, Role.SUPERSEDED} else None


def _kind(role: Role) -> str:
    return _A_ROLES.get(role) or _B_ROLES.get(role) or "linear"


def _slot(role: Role) -> str:
    if role in _A_ROLES:
        return "a"
    if role in _B_ROLES:
        return "b"
    return "magnitude" if role is Role.LORA_MAGNITUDE else "b_bias"


def _attach_magnitudes(parts: dict[tuple[str, str], dict[str, ParameterName]]) -> None:
    """A magnitude's name does not say whether its layer is an embedding: its pair does."""
    for (layer, kind), part in list(parts.items()):
        embedding = parts.get((layer, "embedding"))
        if kind == "linear" and set(part) == {"magnitude"} and embedding is not None:
            embedding.setdefault("magnitude", part["magnitude"])
            del parts[layer, kind]


def _pair(
    kind: str, part: Mapping[str, ParameterName], shapes: Mapping[str, Shape]
) -> tuple[LoraPair | None, list[Problem]]:
    a, b = part.get("a"), part.get("b")
    if a is None or b is None:
        return None, [_unpaired(parameter, a, b) for parameter in part.values()]
    if a.family != b.family:
        return None, [
            Problem(
                f"{a.name} and {b.name}",
                f"one is spelled as {a.family}, the other as {b.family}",
                "A and B of one layer in one spelling",
                "The file mixes two adapters: give each in a file of its own",
            )
        ]
    a_shape, b_shape = shapes[a.name], shapes[b.name]
    if kind == "linear" and len(a_shape) > 2 and a.family in {"peft", "parallel-core"}:
        kind = "conv"
    fault = _shape_fault(kind, a, b, a_shape, b_shape)
    if fault is not None:
        return None, [fault]
    rank = a_shape[2] if kind == "expert" else a_shape[0]
    width = b_shape[2] if kind == "expert" else b_shape[0]
    magnitude, b_bias = part.get("magnitude"), part.get("b_bias")
    faults = [
        _width_fault(vector, shapes[vector.name], width)
        for vector in (magnitude, b_bias)
        if vector is not None and math.prod(shapes[vector.name]) != width
    ]
    if faults:
        return None, faults
    pair = LoraPair(
        layer=a.layer,
        family=a.family,
        kind=kind,
        rank=rank,
        a=a.name,
        b=b.name,
        magnitude=magnitude.name if magnitude else None,
        b_bias=b_bias.name if b_bias else None,
        bases=_bases(a, kind),
    )
    return pair, []


def _bases(a: ParameterName, kind: str) -> tuple[str, ...]:
    weight = a.base or ""
    if kind == "expert":
        return (weight,)
    if kind == "embedding" and a.family != "peft":
        return (weight, f"{a.layer}.embedding_table", f"{a.layer}.weight")
    # PEFT adapts the fused input projection of a torch.nn.MultiheadAttention under the module's own name.
    return (weight, f"{a.layer}.in_proj_weight") if a.family == "peft" and kind == "linear" else (weight,)


def _shape_fault(kind: str, a: ParameterName, b: ParameterName, a_shape: Shape, b_shape: Shape) -> Problem | None:
    where = f"{a.name} and {b.name}"
    found = f"A {a_shape} and B {b_shape}"
    if not a_shape or not b_shape or 0 in a_shape or 0 in b_shape or len(a_shape) == 1 or len(b_shape) == 1:
        return Problem(where, found, "matrices with elements", _UNGATHERED)
    if kind == "expert":
        expected = "A (experts, in, rank) and B (experts, rank, out)"
        if len(a_shape) != 3 or len(b_shape) != 3:
            return Problem(where, found, expected)
        if a_shape[0] == b_shape[0] and a_shape[2] == b_shape[1]:
            return None
        transposed = "Both look" if a_shape[0] == b_shape[0] and a_shape[1] == b_shape[2] else ""
    elif kind == "conv":
        expected = "A (rank, in, *kernel) and B (out, rank, 1, ...)"
        fits = len(a_shape) == len(b_shape) and set(b_shape[2:]) <= {1} and a_shape[0] == b_shape[1]
        return None if fits else Problem(where, found, expected, "A grouped convolution must be merged with PEFT")
    else:
        expected = "A (rank, entries) and B (width, rank)" if kind == "embedding" else "A (rank, in) and B (out, rank)"
        if len(a_shape) == 3 and len(b_shape) == 3:
            return Problem(
                where, found, expected, "These are several SLoRA adapters, stacked: merge the adapters' own files"
            )
        if len(a_shape) != 2 or len(b_shape) != 2:
            return Problem(where, found, expected)
        if a_shape[0] == b_shape[1]:
            return None
        transposed = _look_transposed(a_shape, b_shape)
    remedy = (
        f"{transposed} transposed: write {'them' if transposed == 'Both look' else 'it'} transposed"
        if transposed
        else "The ranks differ: A and B come from different adapters, or one of them is a slice of a distributed run"
    )
    return Problem(where, found, expected, remedy)


def _look_transposed(a_shape: Shape, b_shape: Shape) -> str:
    """Which of A and B have the rank, the smallest of all sides, where the other side should be; empty where none."""
    rank = min(*a_shape, *b_shape)
    a_place, b_place = (shape.index(rank) if rank in shape else -1 for shape in (a_shape, b_shape))
    return {(1, 0): "Both look", (1, 1): "A looks", (0, 0): "B looks"}.get((a_place, b_place), "")


def _unpaired(parameter: ParameterName, a: ParameterName | None, b: ParameterName | None) -> Problem:
    missing = "neither A nor B" if a is None and b is None else "no A" if a is None else "no B"
    return Problem(
        parameter.name,
        f"{missing} for layer {parameter.layer or '(no name)'}",
        f"{parameter.role.value} beside the layer's LoRA A and B",
        "The adapter's file is incomplete, or its keys were renamed in part",
    )


def _multihead(pair: LoraPair) -> Problem:
    return Problem(
        pair.a,
        "an adapter of a torch.nn.MultiheadAttention: PEFT adds B @ A to its out_proj twice, in training as in "
        "merging, up to version 0.21.2 at least (huggingface/peft, pull request 3774), so what it means depends on the "
        "version",
        remedy="Merge it with the version of PEFT that trained it",
    )


def _twice(first: ParameterName, second: ParameterName) -> Problem:
    return Problem(
        f"{first.name} and {second.name}",
        f"both are {second.role.value} of layer {second.layer or '(no name)'}",
        "one per layer",
        "The file mixes two adapters, or targets parameters by `target_parameters`: merge each by itself, or with PEFT",
    )


def _same_weight_twice(pairs: Iterable[LoraPair]) -> list[Problem]:
    """Two pairs of one adapter whose likeliest base is the same weight, as an expert's and a linear's may be."""
    problems = []
    seen: dict[str, LoraPair] = {}
    for pair in pairs:
        other = seen.setdefault(pair.bases[0], pair)
        if other is not pair:
            problems.append(
                Problem(
                    f"{other.a} and {pair.a}",
                    f"both change {pair.bases[0]}",
                    "one update per weight in an adapter",
                    "The file mixes two adapters: give each in a file of its own",
                )
            )
    return problems


def _width_fault(vector: ParameterName, shape: Shape, width: int) -> Problem:
    return Problem(
        vector.name, f"shape {shape}", f"{width} elements, one for each row of B", "It belongs to another adapter"
    )
