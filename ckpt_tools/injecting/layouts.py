"""How what a method adds is cut over devices, given how the layers are.

MindFormers cuts its LoRA cells by the strategy of the layer whose place they take (`recursive_replace_dense_cell`, and
the parallel core's `shard`): an axis of A that lies along the layer's input is cut as the input is, one of B along its
output as the output is, and the rank is whole. `surgery.network` cuts the other methods' cells likewise. A prefix's
encoder is in the first stage, as there, and whole on every device: MindFormers cuts its two dense layers by the
model-parallel devices, which the strategy of a base does not name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_tools.layout import Layout, Strategy
from ckpt_tools.layout.expanded import folded_whole
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.methods import NewParameter, Side, TargetLayer

__all__ = ["AddedTo", "covering", "with_added"]


@dataclass(frozen=True, slots=True)
class AddedTo:
    """A parameter that a method adds, and the layer that it is added to; None for the network itself."""

    parameter: NewParameter
    layer: TargetLayer | None = None


def with_added(strategy: Strategy, added: tuple[AddedTo, ...], weights: Mapping[str, LazyTensor]) -> Strategy:
    """A strategy with the layouts of new parameters; those that it has itself, it keeps.

    Optimizer shards of a layer are not handed on: new parameters are small, and each device holds its slice whole.

    Args:
        strategy: How the base is to be cut.
        added: The new parameters.
        weights: The base's weights, by name.
    """
    stages = []
    listed = {name for layouts in strategy.stages for name in layouts}
    for stage, layouts in enumerate(strategy.stages):
        extended = dict(layouts)
        for one in added:
            # Where the strategy has it in another stage than its layer, it is there alone.
            if one.parameter.name in listed or (one.layer is None and stage > 0):
                continue
            layout = _layout_of(one, layouts, weights)
            if layout is not None:
                extended[one.parameter.name] = layout
        stages.append(extended)
    return replace(strategy, stages=tuple(stages))


def covering(
    strategy: Strategy, stages: tuple[Mapping[str, object], ...], tensors: Mapping[str, LazyTensor]
) -> Strategy:
    """A strategy that has the layout of every tensor of an output, and of no other.

    Args:
        strategy: How the output is cut.
        stages: For each stage, the names of what its ranks hold; what the strategy does not list, all hold whole.
        tensors: The output's whole tensors.
    """
    covered = []
    for layouts, held in zip(strategy.stages, stages, strict=True):
        matrix = next(iter(layouts.values())).device_matrix
        found = {}
        for name, tensor in tensors.items():
            if name in held:
                listed = layouts.get(name) or Layout(matrix, ((),) * len(tensor.shape))
                found[name] = folded_whole(listed, tensor.shape)
        covered.append(found)
    return replace(strategy, stages=tuple(covered))


def _layout_of(one: AddedTo, layouts: Mapping[str, Layout], weights: Mapping[str, LazyTensor]) -> Layout | None:
    """The layout of a new parameter in a stage; None where its layer is in another stage."""
    axes = len(one.parameter.shape)
    if one.layer is None:
        matrix = next(iter(layouts.values())).device_matrix
        return Layout(matrix, ((),) * axes)
    name = one.layer.parameter("weight")
    if name not in layouts:
        return None
    weight = folded_whole(layouts[name], weights[name].shape)
    if not one.parameter.sides or len(weight.tensor_map) != 2:
        return Layout(weight.device_matrix, ((),) * axes)
    cuts = dict(zip(_sides_of(one.layer, weights[name].shape), weight.tensor_map, strict=True))
    uneven = weight.split_shape if one.parameter.sides[0] is _sides_of(one.layer, weights[name].shape)[0] else ()
    return Layout(weight.device_matrix, tuple(cuts.get(side, ()) for side in one.parameter.sides), split_shape=uneven)


def _sides_of(layer: TargetLayer, shape: tuple[int, ...]) -> tuple[Side, Side]:
    """What the axes of a layer's weight lie along: `(out, in)`, or as GPT-2's `(in, out)`."""
    if shape == (layer.out_channels, layer.in_channels):
        return Side.OUTPUT, Side.INPUT
    return Side.INPUT, Side.OUTPUT
