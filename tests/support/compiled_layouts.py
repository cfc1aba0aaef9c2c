"""What MindSpore's compiler makes of a `Layout(...)` before it writes a strategy, after `TensorLayout` in C++.

`InitFromExtendVector` reshapes the tensor to an axis for each device axis that cuts it, and counts an axis
`interleaved_parallel` as 1; `RemoveElementEqualToOneInDeviceArrangement` takes axes of size 1 out of matrix and map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ckpt_tools.layout.model import Layout


def compiled_json(layouts: Mapping[str, tuple[Layout, tuple[int, ...]]], interleaved: bool = False) -> bytes:
    """A strategy file in JSON of these layouts, of tensors of these shapes.

    Args:
        layouts: Parameter name to layout and the whole tensor's shape.
        interleaved: Whether the last device axis is `interleaved_parallel`.
    """
    items = {name: _compiled(layout, shape, interleaved) for name, (layout, shape) in layouts.items()}
    operators = {"operator": {"stage": 0, "parallel_strategy": [[1, 1]]}}
    document = {"current_stage": 1, "parallel_strategy_item": operators, "parallel_layout_item": items}
    return json.dumps(document).encode()


def without_interleaving(layout: Layout) -> Layout:
    """What such a layout means for the slices: its last device axis stands for no devices."""
    matrix = (*layout.device_matrix[:-1], 1)
    return Layout(matrix, layout.tensor_map, layout.shard_step, layout.shard_size)


def _compiled(layout: Layout, shape: tuple[int, ...], interleaved: bool) -> dict[str, object]:
    matrix = list(layout.device_matrix)
    if interleaved:
        matrix[-1] = 1
    flat: list[int] = []
    lengths: list[int] = []
    for cuts, length in zip(layout.tensor_map, shape, strict=True):
        axes = list(cuts) or [-1]
        taken = 1
        for axis in axes[:-1]:
            size = matrix[len(matrix) - 1 - axis]
            taken *= size
            lengths.append(size)
        lengths.append(length // taken)
        flat += axes
    kept, standard = _without_ones(matrix, flat)
    return {
        "dev_matrix": kept,
        "tensor_map": standard,
        "tensor_shape": lengths,
        "field": 0,
        "opt_weight_shard_step": layout.shard_step,
        "opt_weight_shard_size": layout.shard_size,
    }


def _without_ones(matrix: list[int], flat: list[int]) -> tuple[list[int], list[int]]:
    numbers = {}
    left = [index for index, size in enumerate(matrix) if size != 1]
    for position, index in enumerate(left):
        numbers[len(matrix) - 1 - index] = len(left) - 1 - position
    return [matrix[index] for index in left] or [1], [numbers.get(axis, -1) for axis in flat]
