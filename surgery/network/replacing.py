"""Put cells of a method into the places of a network's linear layers, around the weights that are there."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from typing import Any

from surgery.methods import LayerKind, LayerPetConfig, TargetLayer
from surgery.network.cells import slots_of, swap_cells
from surgery.network.layers import select_layers, target_of
from surgery.network.packages import Cell

__all__ = ["ORIGINAL", "adopt_weights", "originals_of", "replace_layers"]

# The attribute under which a new cell keeps the layer that it took the place of: in a tuple, which is no child.
ORIGINAL = "surgery_original"

BuildCell = Callable[[Any, TargetLayer, Any], Cell]


def replace_layers(
    network: Cell, config: LayerPetConfig, build: BuildCell, kinds: Set[LayerKind] = frozenset({LayerKind.DENSE})
) -> Cell:
    """Replace the layers that a configuration selects.

    Args:
        network: The network; changed in place.
        config: What selects layers; handed to `build`.
        build: Makes the new cell of (the layer, what it is, the configuration). It has the layer's weight and bias, the
            same objects, and parameters of its own.
        kinds: The kinds of layers that `build` knows.

    Returns:
        The network.

    Raises:
        MismatchError: The configuration selects no layer.
    """
    selected = set(select_layers(network, config, kinds).paths)
    # Each cell once, at the first place where it hangs.
    layers = {id(slot.cell): slot for slot in reversed(list(slots_of(network))) if slot.path in selected}
    replacements, taken = {}, set()
    for key, slot in reversed(layers.items()):
        layer, target = slot.cell, target_of(slot.cell)
        if target.name in taken:  # two layers of one weight
            target = replace(target, name=slot.path)
        taken.add(target.name)
        cell = build(layer, target, config)
        _name_parameters(cell, layer, target)
        object.__setattr__(cell, ORIGINAL, (layer,))
        cell.set_train(layer.training)
        replacements[key] = cell
    swap_cells(network, replacements)
    return network


def adopt_weights(cell: Cell, layer: Cell) -> None:
    """Give a new cell the weight, the bias and the operators of the layer whose place it takes, the same objects."""
    cell.matmul, cell.weight = layer.matmul, layer.weight
    if layer.has_bias:
        cell.bias, cell.bias_add = layer.bias, layer.bias_add


def originals_of(network: Cell) -> dict[int, Cell]:
    """`id` of each cell that took a layer's place, to that layer."""
    kept = ((slot.cell, vars(slot.cell).get(ORIGINAL)) for slot in slots_of(network))
    return {id(cell): original[0] for cell, original in kept if original}


def _name_parameters(cell: Cell, layer: Cell, target: TargetLayer) -> None:
    """Name new parameters after the layer, as `update_parameters_name` of a network would, and no other parameter."""
    own = {id(parameter) for parameter in layer.get_parameters()}
    for path, parameter in cell.parameters_and_names():
        if id(parameter) not in own:
            parameter.name = target.parameter(path)
