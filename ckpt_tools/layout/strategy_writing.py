"""Write strategy files: MindSpore's message `ParallelStrategyMap`, as `strategy_protobuf` describes it.

One file holds all stages: with several, the parameters are called `STAGE-name`, as in a file that MindSpore's
`merge_pipeline_strategys` makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckpt_tools.layout.model import Layout

__all__ = ["strategy_file"]

_VARINT, _LENGTH = 0, 2

# MindSpore takes the stage of a file from its operators, and ours are of parameters alone: one stands for each stage.
_OPERATOR = "pet-surgery"


def strategy_file(stages: Sequence[Mapping[str, Layout]]) -> bytes:
    """The bytes of a strategy file.

    Args:
        stages: For each stage, parameter name to layout.
    """
    known: dict[Layout, bytes] = {}
    parts = [_number(1, 1)]
    for stage in range(len(stages)):
        strategy = _number(1, stage) + _field(2, _dims((1,)))
        parts.append(_field(2, _field(1, f"{_OPERATOR}-{stage}".encode()) + _field(2, strategy)))
    for stage, layouts in enumerate(stages):
        for name, layout in layouts.items():
            if layout not in known:
                known[layout] = _layout(layout)
            listed = f"{stage}-{name}" if len(stages) > 1 else name
            parts.append(_field(3, _field(1, listed.encode("utf-8", "surrogatepass")) + _field(2, known[layout])))
    return b"".join(parts)


def _layout(layout: Layout) -> bytes:
    assert not layout.expanded_shape, "protobuf has no tensor_shape: the layout has to be folded first"
    return b"".join(
        (
            _field(1, _dims(layout.device_matrix)),
            *(_field(2, _dims(axes)) for axes in _tensor_map(layout.tensor_map)),
            _field(3, _dims(layout.split_shape)),
            _field(4, _dims(layout.indices_offset)),
            _number(5, layout.field),
            _number(6, layout.shard_step),
            _number(7, layout.shard_size),
        )
    )


def _tensor_map(tensor_map: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """The messages of a map: one with a number an axis, or one an axis where several device axes cut one.

    MindSpore reads a single message as the former, and so adds an empty one to that of a tensor with one axis.
    """
    if all(len(axes) <= 1 for axes in tensor_map):
        return [tuple(axes[0] if axes else -1 for axes in tensor_map)]
    messages = [axes or (-1,) for axes in tensor_map]
    return [*messages, ()] if len(messages) == 1 else messages


def _dims(values: Iterable[int]) -> bytes:
    return b"".join(_number(1, value) for value in values)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number * 8 + _LENGTH) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number * 8 + _VARINT) + _varint(value % 2**64)  # below 0 in 64 bits, as protobuf has it


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
