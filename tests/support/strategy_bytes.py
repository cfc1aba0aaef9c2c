"""Strategy files put together byte by byte, as MindSpore's compiler writes them, without the code under test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ckpt_bytes import field, varint

from ckpt_tools.layout.model import Layout

TensorMap = tuple[tuple[int, ...], ...]


def strategy_bytes(layouts: Mapping[str, Layout], stage: int = 0, packed: bool = False) -> bytes:
    """A protobuf strategy file of one stage, or a merged one where all names are of the form `STAGE-name`.

    Args:
        layouts: Parameter name to layout. A tensor map with at most one device axis a tensor axis becomes one message,
            else a message a tensor axis.
        stage: What the file's one operator says of its stage.
        packed: Whether lists of numbers are packed; MindSpore's are not.
    """
    items = [number(1, 1), field(2, strategy_item(stage))]
    items += [field(3, layout_item(name, layout, packed)) for name, layout in layouts.items()]
    return b"".join(items)


def strategy_json(layouts: Mapping[str, Layout], stage: int = 0) -> bytes:
    """The same as JSON."""
    document = {
        "current_stage": 1,
        "parallel_strategy_item": {"operator": {"stage": stage, "parallel_strategy": [[1, 1]]}},
        "parallel_layout_item": {name: layout_json(layout) for name, layout in layouts.items()},
    }
    return json.dumps(document).encode()


def strategy_item(stage: int) -> bytes:
    return field(1, b"operator") + field(2, number(1, stage) + field(2, dims([1, 1])))


def layout_item(name: str, layout: Layout, packed: bool = False) -> bytes:
    return field(1, name.encode()) + field(2, layout_message(layout, packed))


def layout_message(layout: Layout, packed: bool = False) -> bytes:
    return b"".join(
        [
            field(1, dims(layout.device_matrix, packed)),
            *(field(2, dims(axes, packed)) for axes in tensor_map_messages(layout.tensor_map)),
            field(3, dims(layout.split_shape, packed)),
            field(4, dims(layout.indices_offset, packed)),
            number(5, layout.field),
            number(6, layout.shard_step),
            number(7, layout.shard_size),
        ]
    )


def layout_json(layout: Layout) -> dict[str, object]:
    nested = is_nested(layout.tensor_map)
    return {
        "dev_matrix": list(layout.device_matrix),
        "tensor_map": [list(cuts) or [-1] for cuts in layout.tensor_map] if nested else flat_map(layout.tensor_map),
        "param_split_shape": list(layout.split_shape),
        "indices_offset": list(layout.indices_offset),
        "field": layout.field,
        "opt_weight_shard_step": layout.shard_step,
        "opt_weight_shard_size": layout.shard_size,
    }


def is_nested(tensor_map: TensorMap) -> bool:
    return any(len(cuts) > 1 for cuts in tensor_map)


def flat_map(tensor_map: TensorMap) -> list[int]:
    return [cuts[0] if cuts else -1 for cuts in tensor_map]


def tensor_map_messages(tensor_map: TensorMap) -> list[list[int]]:
    """As MindSpore's compiler has it: to the one message of a tensor with one axis it adds an empty one."""
    if not is_nested(tensor_map):
        return [flat_map(tensor_map)]
    messages = [list(cuts) or [-1] for cuts in tensor_map]
    return [*messages, []] if len(messages) == 1 else messages


def number(field_number: int, value: int) -> bytes:
    return varint(field_number * 8) + varint(value % 2**64)


def dims(values: Iterable[int], packed: bool = False) -> bytes:
    if packed:
        data = b"".join(varint(value % 2**64) for value in values)
        return field(1, data) if data else b""
    return b"".join(number(1, value) for value in values)
