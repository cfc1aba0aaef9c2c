"""What a method adds to a base, and where: each parameter behind those of the layer that it belongs to.

A cell that takes a layer's place keeps the layer's weight and bias and has the new parameters behind them, so this is
the order in which MindSpore lists the parameters of the changed network. An encoder of prefixes stands beside the
network, behind all of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tools.injecting.layouts import AddedTo
from ckpt_tools.injecting.selecting import Selection
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.initialised import Initialised
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError, Problem
from surgery.methods import Method, NetworkShape, NewParameter, Target, method_for
from surgery.recognition import count_layers
from surgery.tuning import Tuning

__all__ = ["added_parameters", "initialised", "ordered"]


def added_parameters(tuning: Tuning, selection: Selection, weights: Mapping[str, LazyTensor]) -> tuple[AddedTo, ...]:
    """The parameters that a configuration adds to a base, in the order of the layers.

    Args:
        tuning: The configuration.
        selection: The layers that it changes.
        weights: The base's weights.

    Raises:
        MismatchError: The network's shape is not known or not that of the base, or a name is taken.
    """
    method = method_for(tuning.config)
    added = [
        AddedTo(parameter, layer)
        for layer in selection.layers
        for parameter in method.add_parameters(tuning.config, (layer,), None)
    ]
    if method.target is Target.ATTENTION:
        shape = _shape_of(tuning, method, weights)
        added = [AddedTo(parameter) for parameter in method.add_parameters(tuning.config, (), shape)]
    taken = [one.parameter.name for one in added if one.parameter.name in weights]
    if taken:
        remedy = "Take the base that the training began with"
        raise MismatchError(Problem(name, "a parameter of this name in the base", remedy=remedy) for name in taken)
    return tuple(added)


def initialised(parameter: NewParameter, seed: int) -> LazyTensor:
    """The values that a new parameter begins with."""
    initialiser = parameter.initialiser
    dtype = BY_NAME[parameter.dtype]
    return Initialised(parameter.name, seed, initialiser.kind, initialiser.scale, dtype, parameter.shape)


def ordered(
    weights: Mapping[str, LazyTensor],
    added: Mapping[str, LazyTensor],
    places: tuple[AddedTo, ...],
    selection: Selection,
) -> dict[str, LazyTensor]:
    """The base's weights and what is added, in the order of the changed network.

    Args:
        weights: The base's weights.
        added: The new parameters' values, by name.
        places: Where each belongs.
        selection: The layers that are changed.
    """
    positions = {name: index for index, name in enumerate(weights)}
    behind: dict[str, list[str]] = {}
    last: list[str] = []
    for one in places:
        if one.layer is None:
            last.append(one.parameter.name)
        else:
            anchor = max(selection.own[one.layer.name], key=positions.__getitem__)
            behind.setdefault(anchor, []).append(one.parameter.name)
    result: dict[str, LazyTensor] = {}
    for name, tensor in weights.items():
        result[name] = tensor
        result.update((new, added[new]) for new in behind.get(name, ()))
    result.update((new, added[new]) for new in last)
    return result


def _shape_of(tuning: Tuning, method: Method, weights: Mapping[str, LazyTensor]) -> NetworkShape:
    shape, counted = tuning.network_shape(), count_layers(weights)
    if counted and counted != shape.num_layers:
        where = f"{tuning.source}: num_layers"
        remedy = "Give the YAML of this network"
        found = f"{shape.num_layers}, by which {method.title} makes its prefix"
        raise MismatchError(Problem(where, found, f"{counted}, as the base has layers", remedy))
    return shape
