"""Strategy files as MindSpore saves them, in protobuf and in JSON, written without MindSpore.

The message is `ParallelStrategyMap` of MindSpore's `node_strategy.proto`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ckpt_tools.layout import Layout

__all__ = ["write_strategy"]


def write_strategy(path: Path, layouts: Mapping[str, Layout], stage: int = 0) -> None:
    """Write, or replace, the strategy of one pipeline stage: JSON where the path ends with `.json`, else protobuf.

    Args:
        path: The file; folders above it are made.
        layouts: Parameter name to layout, with at most one device axis for each axis of the tensor.
        stage: The stage's number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_json(layouts, stage) if path.suffix == ".json" else _protobuf(layouts, stage))


def _json(layouts: Mapping[str, Layout], stage: int) -> bytes:
    items = {
        name: {
            "dev_matrix": list(layout.device_matrix),
            "tensor_map": _flat(layout),
            "param_split_shape": [],
            "indices_offset": [],
            "field": 0,
            "opt_weight_shard_step": layout.shard_step,
            "opt_weight_shard_size": layout.shard_size,
        }
        for name, layout in layouts.items()
    }
    operators = {"MatMul-op0": {"stage": stage, "parallel_strategy": [[1, 1], [1, 1]]}}
    document = {"current_stage": 1, "parallel_strategy_item": operators, "parallel_layout_item": items}
    return json.dumps(document, indent=2).encode()


def _protobuf(layouts: Mapping[str, Layout], stage: int) -> bytes:
    strategy = _number(1, stage) + 2 * _message(2, _list([1, 1]))
    parts = [_number(1, 1), _message(2, _message(1, b"MatMul-op0") + _message(2, strategy))]
    for name, layout in layouts.items():
        content = b"".join(
            [
                _message(1, _list(layout.device_matrix)),
                _message(2, _list(_flat(layout))),
                _message(3, b""),
                _message(4, b""),
                _number(5, 0),
                _number(6, layout.shard_step),
                _number(7, layout.shard_size),
            ]
        )
        parts.append(_message(3, _message(1, name.encode()) + _message(2, content)))
    return b"".join(parts)


def _flat(layout: Layout) -> list[int]:
    """`tensor_map`: for each axis of the tensor the device axis that cuts it, from the right, or -1."""
    return [cuts[0] if cuts else -1 for cuts in layout.tensor_map]


def _list(values: tuple[int, ...] | list[int]) -> bytes:
    return b"".join(_number(1, value) for value in values)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value % 2**64)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
