"""Strategy files by MindSpore's own protobuf classes; MindSpore has to be installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mindspore.train.node_strategy_pb2 import ParallelStrategyMap
from strategy_bytes import tensor_map_messages

from ckpt_tools.layout import Layout


def mindspore_bytes(layouts: Mapping[str, Layout], stages: Iterable[int] = (0,)) -> bytes:
    """The file of one stage with an operator for each of `stages`, filled as MindSpore's compiler does."""
    message = ParallelStrategyMap(current_stage=1)
    for index, stage in enumerate(stages):
        operator = message.parallel_strategy_item.add(node_name=f"MatMul-op{index}")
        operator.parallel_strategys.stage = stage
        operator.parallel_strategys.parallel_strategy.add().dim.extend([2, 1])
    for name, layout in layouts.items():
        item = message.parallel_layout_item.add(param_name=name).parallel_layouts
        item.dev_matrix.add().dim.extend(layout.device_matrix)
        for axes in tensor_map_messages(layout.tensor_map):
            item.tensor_map.add().dim.extend(axes)
        item.param_split_shape.add().dim.extend(layout.split_shape)
        item.indices_offset.add().dim.extend(layout.indices_offset)
        item.field = layout.field
        item.opt_weight_shard_step = layout.shard_step
        item.opt_weight_shard_size = layout.shard_size
    return message.SerializeToString()
