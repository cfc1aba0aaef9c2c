"""Which way round a square weight is stored: (out, in), as a Linear has it, or (in, out), as GPT-2's Conv1D.

Its shape does not tell, and `fan_in_fan_out` is not to be trusted: a configuration has one for all layers, and PEFT
sets it by the class of each layer that it meets, so that the file has that of the last. The weights around it do tell:
one that is not square shows its orientation by its factors, or by the length of its bias.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

__all__ = ["square_orientations"]

Shape = tuple[int, ...]

# Layers of these names are Linear in every network that is known.
_ALWAYS_LINEAR = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj"),
        *("query", "key", "value", "dense", "query_key_value"),
        *("wq", "wk", "wv", "wo", "w1", "w2", "w3", "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
    }
)


def square_orientations(
    squares: Collection[str], known: Mapping[str, bool], shapes: Mapping[str, Shape], *, fan_in_fan_out: bool
) -> dict[str, bool]:
    """Tell which square weights are (in, out).

    The weights that are asked, until some are of one mind: those of the same name in other blocks and other parts of a
    block, those of the same part of a block, all.

    Args:
        squares: Names of square weights.
        known: Names of weights whose orientation their factors show, and whether that is (in, out).
        shapes: Shapes of all weights and biases of the base.
        fan_in_fan_out: What the configuration says; it is believed where nothing else speaks.
    """
    if not squares:
        return {}
    witnesses = {**dict(_by_biases(shapes)), **known}
    return {name: _orientation(name, witnesses, fan_in_fan_out) for name in squares}


def _orientation(square: str, witnesses: Mapping[str, bool], fan_in_fan_out: bool) -> bool:
    for kinship in (_last_name, _part, _everything):
        votes = {transposed for name, transposed in witnesses.items() if kinship(name) == kinship(square)}
        if len(votes) == 1:
            return votes.pop()
    return fan_in_fan_out and _last_name(square) not in _ALWAYS_LINEAR


def _by_biases(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, bool]]:
    for name, shape in shapes.items():
        bias = shapes.get(f"{name.removesuffix('.weight')}.bias", ())
        if len(shape) == 2 and len(bias) == 1 and shape[0] != shape[1] and bias[0] in shape:
            yield name, bias[0] == shape[1]


def _last_name(weight: str) -> str:
    """`c_proj` of `h.0.attn.c_proj.weight`."""
    return weight.rpartition(".")[0].rpartition(".")[2]


def _part(weight: str) -> str:
    """`h.*.attn` of `h.0.attn.c_proj.weight`."""
    return re.sub(r"\.\d+\.", ".*.", weight.rpartition(".")[0].rpartition(".")[0] + ".")


def _everything(weight: str) -> str:
    del weight
    return ""
