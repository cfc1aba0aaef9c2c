"""Strategy files in protobuf: MindSpore's message `ParallelStrategyMap` (`node_strategy.proto`).

    ParallelStrategyMap  = current_stage=1  parallel_strategy_item=2 *  parallel_layout_item=3 *
    ParallelStrategyItem = node_name=1  parallel_strategys=2 { stage=1  ... }
    ParallelLayoutItem   = param_name=1  parallel_layouts=2 {
        dev_matrix=1 { dim=1 * }  tensor_map=2 { dim=1 * } *
        param_split_shape=3 { dim=1 * }  indices_offset=4 { dim=1 * }
        field=5  opt_weight_shard_step=6  opt_weight_shard_size=7 }

`current_stage` counts how often the compiler saved; the stage of a file is what its operators say.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.ckpt_wire import LENGTH, VARINT, WireField, WireReader
from ckpt_tools.formats.wire_message import expect_type, fields_once, read_numbers, read_text
from ckpt_tools.layout.model import Layout
from ckpt_tools.layout.strategy_facts import MAX_AXES, MAX_DEVICES, FactsBuilder, StrategyFacts, axes_of_messages
from ckpt_tools.tensors.sources import Source
from surgery.errors import CorruptInputError, Problem

__all__ = ["looks_like_protobuf_strategy", "read_protobuf_strategy"]

_MAX_BYTES = 2**27
_MAX_NAME_BYTES = 65_536
# A layout is about 60 bytes. A longer message, with an uneven cut, is of one parameter alone.
_MAX_SHARED_BYTES = 1024

_LISTS = {1: "dev_matrix", 2: "tensor_map", 3: "param_split_shape", 4: "indices_offset"}
_MAX_NUMBERS = {1: MAX_AXES, 2: MAX_AXES, 3: MAX_DEVICES, 4: MAX_DEVICES}
_NUMBERS = {5: "field", 6: "opt_weight_shard_step", 7: "opt_weight_shard_size"}


def looks_like_protobuf_strategy(head: bytes) -> bool:
    """Whether a file that begins so may be a strategy: with one of the three fields, encoded as it is there.

    A `.ckpt` begins with a field 1 too, but with one that has a length.
    """
    return head[:1] in (b"\x08", b"\x12", b"\x1a")


def read_protobuf_strategy(source: Source) -> StrategyFacts:
    """What a strategy file in protobuf says.

    Raises:
        CorruptInputError: It is damaged, or says what cannot be; all problems that were found are in it.
    """
    if source.size > _MAX_BYTES:
        expected = f"a strategy of at most {_MAX_BYTES:,} bytes"
        raise CorruptInputError(Problem(source.path, f"{source.size:,} bytes", expected, "Is it a checkpoint?"))
    return _Parser(source).facts()


class _Parser:
    def __init__(self, source: Source) -> None:
        self._size = source.size
        self._reader = WireReader(source)
        self._builder = FactsBuilder(source.path)
        self._shared: dict[bytes, Layout] = {}

    def facts(self) -> StrategyFacts:
        try:
            for field in self._reader.fields(0, self._size):
                if self._builder.enough:
                    break
                self._take(field)
        except CorruptInputError as error:  # nothing behind it can be found
            last = self._builder.last_name
            where = "before the first parameter" if last is None else f"behind parameter {quote_name(last)}"
            self._builder.add_error(_at(error, where))
        return self._builder.build()

    def _take(self, field: WireField) -> None:
        if field.number == 1:
            expect_type(self._reader, field, VARINT, "current_stage")
        elif field.number == 2:
            expect_type(self._reader, field, LENGTH, "parallel_strategy_item")
            try:
                self._take_operator(field)
            except CorruptInputError as error:
                self._builder.add_error(_at(error, "an operator's strategy"))
        elif field.number == 3:
            expect_type(self._reader, field, LENGTH, "parallel_layout_item")
            self._take_layout(field)

    def _take_operator(self, item: WireField) -> None:
        for field in self._reader.fields(item.start, item.stop):
            if field.number == 2:
                expect_type(self._reader, field, LENGTH, "parallel_strategys")
                for inner in self._reader.fields(field.start, field.stop):
                    if inner.number == 1:
                        expect_type(self._reader, inner, VARINT, "stage")
                        where = f"{self._builder.path}, byte {inner.offset:,}, an operator's strategy"
                        self._builder.add_stage(inner.value, where)

    def _take_layout(self, item: WireField) -> None:
        place = "a parameter without name"
        try:
            parts = fields_once(self._reader, item, {1: "param_name", 2: "parallel_layouts"})
            name = read_text(self._reader, parts.get(1), item, "param_name", _MAX_NAME_BYTES)
            place = f"parameter {quote_name(name)}"
            if 2 not in parts:
                raise self._reader.corrupt(item.offset, "a parameter without parallel_layouts", "its layout")
            layout = self._layout(parts[2])
        except CorruptInputError as error:
            self._builder.add_error(_at(error, place))
        else:
            self._builder.add_layout(name, layout)

    def _layout(self, message: WireField) -> Layout:
        if message.stop - message.start > _MAX_SHARED_BYTES:
            return self._parse_layout(message)
        content = self._reader.content(message.start, message.stop)
        layout = self._shared.get(content)
        if layout is None:
            layout = self._shared[content] = self._parse_layout(message)
        return layout

    def _parse_layout(self, message: WireField) -> Layout:
        reader = self._reader
        lists: dict[int, list[list[int]]] = {number: [] for number in _LISTS}
        numbers: dict[int, int] = {}
        for field in reader.fields(message.start, message.stop):
            if field.number in _LISTS:
                what = _LISTS[field.number]
                expect_type(reader, field, LENGTH, what)
                # A nested map of MAX_AXES axes, and the empty one that pads it.
                if len(lists[field.number]) > (MAX_AXES if field.number == 2 else 0):
                    raise reader.corrupt(
                        field.offset, f"one {what} too many", "one an axis" if what[0] == "t" else "one"
                    )
                lists[field.number].append(self._dims(field, what))
            elif field.number in _NUMBERS:
                what = _NUMBERS[field.number]
                expect_type(reader, field, VARINT, what)
                if field.number in numbers:
                    raise reader.corrupt(field.offset, f"a second {what}", "one")
                numbers[field.number] = _int32(field.value)
        for number in (1, 2):
            if not lists[number]:
                raise reader.corrupt(message.offset, f"a layout without {_LISTS[number]}", "one")
        tensor_map = axes_of_messages(lists[2] if len(lists[2]) > 1 else [[axis] for axis in lists[2][0]])
        if tensor_map is None:
            expected = "the device axes of each tensor axis, [-1] where there are none"
            raise reader.corrupt(message.offset, "an empty tensor_map in front of others", expected)
        return Layout(
            device_matrix=tuple(lists[1][0]),
            tensor_map=tensor_map,
            shard_step=numbers.get(6, 0),
            shard_size=numbers.get(7, 0),
            split_shape=tuple(lists[3][0]) if lists[3] else (),
            indices_offset=tuple(lists[4][0]) if lists[4] else (),
            field=numbers.get(5, 0),
        )

    def _dims(self, message: WireField, what: str) -> list[int]:
        """The numbers of a message that is nothing but a list."""
        found: list[int] = []
        for field in self._reader.fields(message.start, message.stop):
            if field.number == 1:
                for value in read_numbers(self._reader, field, what):
                    if len(found) == _MAX_NUMBERS[message.number]:
                        raise self._reader.corrupt(
                            field.offset, f"{what} of more than {len(found):,} numbers", f"at most {len(found):,}"
                        )
                    found.append(_int32(value) if message.number == 2 else _int64(value))
        return found


def _int64(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _int32(value: int) -> int:
    """A number below 0 has 64 bits on the wire; protobuf also reads the 32 bits that some encoders write."""
    return value - 2**32 if 2**31 <= value < 2**32 else _int64(value)


def _at(error: CorruptInputError, place: str) -> CorruptInputError:
    return CorruptInputError(replace(problem, where=f"{problem.where}, {place}") for problem in error.problems)
