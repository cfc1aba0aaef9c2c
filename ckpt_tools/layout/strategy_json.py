"""Strategy files in JSON: the keys of MindSpore's protobuf message, names as the keys of objects.

MindSpore writes flat tensor maps, and reads no others; nested lists mean what several `tensor_map` messages mean. Where
a parameter was given a `Layout(...)`, the flat map is that of the expanded tensor, whose shape is `tensor_shape`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.strict_json import MAX_JSON_BYTES, parse_json
from ckpt_tools.layout.expanded import expanded_shape
from ckpt_tools.layout.model import Layout
from ckpt_tools.layout.strategy_facts import MAX_AXES, MAX_DEVICES, FactsBuilder, StrategyFacts, axes_of_messages
from ckpt_tools.tensors.sources import Source, read_exactly
from surgery.errors import CorruptInputError, Problem

__all__ = ["load_json", "looks_like_json", "looks_like_json_strategy", "read_json_strategy"]

_OPERATORS = "parallel_strategy_item"
_LAYOUTS = "parallel_layout_item"

_WHITESPACE = b" \t\r\n"
_CUT = "The file is cut short or damaged: copy it again from where it was saved"
_SAVE_AGAIN = "The file is damaged or was written by another tool: save the strategy again"


def looks_like_json(head: bytes) -> bool:
    """Whether a file that begins so is a JSON text: an object or a list, and no control characters.

    The second is for `.ckpt` files: one that begins with a value of 123 bytes begins as a line feed and a brace do.
    """
    text = head.removeprefix(b"\xef\xbb\xbf")
    return text.lstrip(_WHITESPACE)[:1] in (b"{", b"[") and all(byte >= 0x20 or byte in _WHITESPACE for byte in text)


def load_json(source: Source) -> object:
    """The value of a JSON file.

    Raises:
        CorruptInputError: It is no sound JSON, or too large.
    """
    if source.size > MAX_JSON_BYTES:
        expected = f"a strategy of at most {MAX_JSON_BYTES:,} bytes"
        raise CorruptInputError(Problem(source.path, f"{source.size:,} bytes", expected, _SAVE_AGAIN))
    try:
        return parse_json(read_exactly(source, 0, source.size), source.path)
    except CorruptInputError as error:
        raise CorruptInputError(replace(problem, remedy=_CUT) for problem in error.problems) from error


def looks_like_json_strategy(document: object) -> bool:
    """Whether a JSON value is a strategy, be it one without parameters."""
    return isinstance(document, dict) and not document.keys().isdisjoint({_OPERATORS, _LAYOUTS})


def read_json_strategy(document: object, path: str) -> StrategyFacts:
    """What a strategy file in JSON says.

    Args:
        document: Its value.
        path: The file, for errors.

    Raises:
        CorruptInputError: It says what cannot be; all problems that were found are in it.
    """
    builder = FactsBuilder(path)
    for key, take in ((_OPERATORS, _take_operator), (_LAYOUTS, _take_layout)):
        try:
            items = _object(_object(document, path).get(key, {}), f"{path}, {key}")
        except CorruptInputError as error:
            builder.add_error(error)
            continue
        for name, item in items.items():
            try:
                take(builder, name, item)
            except CorruptInputError as error:
                builder.add_error(error)
            if builder.enough:
                break
    return builder.build()


def _take_operator(builder: FactsBuilder, name: str, item: object) -> None:
    where = f"{builder.path}, {_OPERATORS}, {quote_name(name)}"
    if "stage" in _object(item, where):
        builder.add_stage(_number(_object(item, where), "stage", where), where)


def _take_layout(builder: FactsBuilder, name: str, item: object) -> None:
    builder.add_layout(name, _layout(item, f"{builder.path}, parameter {quote_name(name)}"))


def _layout(item: object, where: str) -> Layout:
    members = _object(item, where)
    for key in ("dev_matrix", "tensor_map"):
        if key not in members:
            raise _wrong(where, f"a layout without {key}", "one")
    layout = Layout(
        device_matrix=_numbers(members["dev_matrix"], f"{where}, dev_matrix", MAX_AXES),
        tensor_map=_tensor_map(members["tensor_map"], f"{where}, tensor_map"),
        shard_step=_number(members, "opt_weight_shard_step", where),
        shard_size=_number(members, "opt_weight_shard_size", where),
        split_shape=_numbers(members.get("param_split_shape", []), f"{where}, param_split_shape", MAX_DEVICES),
        indices_offset=_numbers(members.get("indices_offset", []), f"{where}, indices_offset", MAX_DEVICES),
        field=_number(members, "field", where),
    )
    shape = members.get("tensor_shape")
    if shape is None or any(not 0 <= axis < len(layout.device_matrix) for cuts in layout.tensor_map for axis in cuts):
        return layout
    lengths = _numbers(shape, f"{where}, tensor_shape", MAX_AXES)
    return replace(layout, expanded_shape=expanded_shape(layout, lengths))


def _tensor_map(value: object, where: str) -> tuple[tuple[int, ...], ...]:
    # One more than there are axes: what MindSpore pads a protobuf message with may have come along.
    if not isinstance(value, list) or len(value) > MAX_AXES + 1:
        raise _wrong(where, "something else", f"a list of at most {MAX_AXES} axes")
    axes = [_numbers(axis if isinstance(axis, list) else [axis], where, MAX_AXES) for axis in value]
    tensor_map = axes_of_messages(axes)
    if tensor_map is None:
        raise _wrong(where, "an empty list in front of others", "[-1] for an axis that is not cut")
    return tensor_map


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(where, "something else", "a JSON object")
    return value


def _numbers(value: object, where: str, max_numbers: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > max_numbers or not all(map(_is_int64, value)):
        raise _wrong(where, "something else", f"a list of at most {max_numbers:,} whole numbers")
    return tuple(value)


def _number(members: dict[str, object], key: str, where: str) -> int:
    value = members.get(key, 0)
    if not _is_int64(value):
        raise _wrong(f"{where}, {key}", "something else", "a whole number")
    return value


def _is_int64(value: object) -> TypeGuard[int]:
    return type(value) is int and -(2**63) <= value < 2**63  # `True` is an int to isinstance


def _wrong(where: str, found: str, expected: str) -> CorruptInputError:
    return CorruptInputError(Problem(where, found, expected, _SAVE_AGAIN))
