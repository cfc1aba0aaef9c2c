"""Strategies in protobuf: every field, what else is legal on the wire, and each thing that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from ckpt_bytes import field, varint
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import examples
from strategy_bytes import dims, layout_item, layout_message, number, strategy_bytes, strategy_item
from strategy_cases import is_sound, layouts_by_name, refusal, strategy_or_refusal

from ckpt_tools.layout import Layout, read_strategy

PLAIN = Layout((2, 4), ((0,), ()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.ckpt"


def read(path: Path, data: bytes) -> dict[str, Layout]:
    """The layouts of the one stage."""
    path.write_bytes(data)
    (stage,) = read_strategy(path).stages
    return dict(stage)


def with_layout(message: bytes) -> bytes:
    """A strategy of one parameter, "w", with this layout."""
    return field(3, field(1, b"w") + field(2, message))


def test_every_field_of_a_layout_is_read(path: Path) -> None:
    layout = Layout((2, 4, 2), ((0,), (), (2,)), 4, -1, (3, 5, 2), (0, -3, 8), 7)
    path.write_bytes(strategy_bytes({"a": layout, "b": Layout((16,), ())}))
    strategy = read_strategy(path)
    assert strategy.stages == ({"a": layout, "b": Layout((16,), ())},)
    assert (strategy.path, strategy.stage_devices, strategy.ranks) == (path, 16, 16)


def test_golden_bytes_mean_what_node_strategy_proto_says(path: Path) -> None:
    # MindSpore 2.9's node_strategy_pb2 on protobuf 7.36, SerializeToString(): current_stage 1; operator "op" of stage 0
    # with [8, 1]; "w" with [2, 4], [0, -1], empty param_split_shape and indices_offset, field 0, step 1, size 2.
    data = bytes.fromhex(
        "0801"
        "120e 0a026f70 1208 0800 1204 08080801"
        "1a24 0a0177 121f 0a0408020804 120d 0800 08ffffffffffffffffff01 1a00 2200 2800 3001 3802"
    )
    assert read(path, data) == {"w": Layout((2, 4), ((0,), ()), 1, 2)}


def test_packed_numbers_are_read_like_single_ones(path: Path) -> None:
    layouts = {"a": Layout((2, 4), ((1, 0), ()), 1, -1, (300, 5), (-1, 2)), "b": PLAIN}
    assert read(path, strategy_bytes(layouts, packed=True)) == read(path, strategy_bytes(layouts)) == layouts


def test_parameters_keep_the_order_of_the_file(path: Path) -> None:
    names = ["z", "a", "m.10", "m.9"]
    assert list(read(path, strategy_bytes(dict.fromkeys(names, PLAIN)))) == names


def test_several_messages_are_one_for_each_axis_with_minus_one_left_out(path: Path) -> None:
    layout = field(1, dims([2, 2, 2])) + b"".join(field(2, dims(axes)) for axes in ([2, 0], [-1], [-1, 1]))
    assert read(path, with_layout(layout))["w"].tensor_map == ((2, 0), (), (1,))


def test_the_empty_message_that_pads_a_single_axis_is_no_axis(path: Path) -> None:
    layout = field(1, dims([2, 2])) + field(2, dims([1, 0])) + field(2, b"")
    assert read(path, with_layout(layout))["w"].tensor_map == ((1, 0),)


def test_a_single_message_has_one_device_axis_a_tensor_axis(path: Path) -> None:
    layout = field(1, dims([2, 2])) + field(2, dims([1, 0]))
    assert read(path, with_layout(layout))["w"].tensor_map == ((1,), (0,))


def test_an_empty_message_in_front_of_others_is_refused_as_it_would_shift_the_axes(path: Path) -> None:
    layout = field(1, dims([2, 2])) + field(2, b"") + field(2, dims([1, 0]))
    assert "an empty tensor_map in front of others" in str(refusal(path, with_layout(layout)))


@pytest.mark.parametrize("minus_one", [b"\x08" + b"\xff" * 9 + b"\x01", b"\x08\xff\xff\xff\xff\x0f"])
def test_minus_one_is_read_in_64_and_in_32_bits(path: Path, minus_one: bytes) -> None:
    layout = field(1, dims([2])) + field(2, minus_one + number(1, 0))
    assert read(path, with_layout(layout))["w"].tensor_map == ((), (0,))


def test_fields_in_another_order_and_unknown_ones_are_legal(path: Path) -> None:
    unknown = number(9, 5) + field(11, b"anything") + varint(12 * 8 + 5) + bytes(4) + varint(13 * 8 + 1) + bytes(8)
    layout = unknown + number(7, -1) + number(6, 4) + field(2, dims([0]) + unknown) + field(1, unknown + dims([2, 4]))
    data = field(3, unknown + field(2, layout) + field(1, b"w")) + unknown + field(2, unknown + strategy_item(0))
    assert read(path, data + number(1, 9)) == {"w": Layout((2, 4), ((0,),), 4, -1)}


def test_the_first_layouts_of_many_are_not_taken_for_the_others(path: Path) -> None:
    """Equal layouts are parsed once: only equal ones may be."""
    layouts = {f"w{i}": Layout((2, 4), ((i % 2,), ()), i % 3, i % 3) for i in range(300)}
    assert read(path, strategy_bytes(layouts)) == layouts


def test_a_long_uneven_cut_is_read(path: Path) -> None:
    layout = Layout((5000,), ((0,),), split_shape=tuple(range(1, 5001)))
    assert read(path, strategy_bytes({"w": layout})) == {"w": layout}


@settings(max_examples=examples(60), deadline=None)
@given(layouts=layouts_by_name(), packed=st.booleans())
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, layouts: dict[str, Layout], packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.ckpt"
    assert read(path, strategy_bytes(layouts, packed=packed)) == layouts


GOOD = layout_message(PLAIN)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (field(3, field(2, GOOD)), "without param_name"),
        (field(3, field(1, b"") + field(2, GOOD)), "without param_name"),
        (field(3, field(1, b"\xff\xfe") + field(2, GOOD)), "valid UTF-8"),
        (field(3, field(1, b"w" * 70_000) + field(2, GOOD)), "70,000 bytes"),
        (field(3, field(1, b"w")), "without parallel_layouts"),
        (field(3, field(1, b"w") * 2 + field(2, GOOD)), "param_name a second time"),
        (field(3, field(1, b"w") + field(2, GOOD) * 2), "parallel_layouts a second time"),
        (with_layout(field(2, dims([0]))), "without dev_matrix"),
        (with_layout(field(1, dims([2]))), "without tensor_map"),
        (with_layout(GOOD + field(1, dims([2]))), "one dev_matrix too many"),
        (with_layout(GOOD + field(2, dims([1])) * 33), "one tensor_map too many"),
        (with_layout(GOOD + field(3, dims([1]))), "one param_split_shape too many"),
        (with_layout(GOOD + number(6, 1)), "a second opt_weight_shard_step"),
        (with_layout(GOOD + field(7, b"")), "wire type 2 for opt_weight_shard_size"),
        (with_layout(number(1, 8) + field(2, dims([0]))), "wire type 0 for dev_matrix"),
        (with_layout(field(1, varint(8 + 5) + bytes(4)) + field(2, dims([0]))), "wire type 5 for dev_matrix"),
        (with_layout(field(1, dims([1] * 33)) + field(2, dims([0]))), "more than 32 numbers"),
        (with_layout(field(1, dims([2])) + field(2, dims([-1] * 33))), "more than 32 numbers"),
        (field(1, b"weights") + field(3, b""), "unknown bytes"),
        (number(1, 1) + number(2, 1), "wire type 0 for parallel_strategy_item"),
        (number(1, 1) + number(3, 1), "wire type 0 for parallel_layout_item"),
        (number(1, 1) + field(2, number(2, 0)), "wire type 0 for parallel_strategys"),
        (number(1, 1) + field(2, field(2, field(1, b""))), "wire type 2 for stage"),
        (number(1, 1) + field(2, field(2, number(1, 2**32))), "stage 4294967296"),
        (number(1, 1) + b"\x0b", "group"),
        (number(1, 1) + b"\x00", "field number 0"),
        (b"\x08" + b"\xff" * 11, "more than 64 bits"),
        (field(3, layout_item("w", PLAIN)) * 2, "a second layout"),
    ],
)
def test_what_breaks_the_format_is_refused(path: Path, data: bytes, says: str) -> None:
    assert says in str(refusal(path, data))


def test_all_problems_of_a_file_come_at_once_with_their_parameters(path: Path) -> None:
    bad = {
        "model.first": Layout((2, 4), ((2,), ())),
        "model.sound": PLAIN,
        "model.third": Layout((2, 0), ()),
    }
    items = [field(3, layout_item(name, layout)) for name, layout in bad.items()]
    error = refusal(path, b"".join([items[0], field(3, field(1, b"model.none")), *items[1:]]))
    assert [problem.where.rsplit(", ", 1)[1] for problem in error.problems] == [
        "parameter 'model.first'",
        "parameter 'model.none'",
        "parameter 'model.third'",
    ]


def test_very_many_problems_are_cut_to_a_few(path: Path) -> None:
    bad = {f"w{i}": Layout((2,), ((5,),)) for i in range(3000)}
    assert len(refusal(path, strategy_bytes(bad)).problems) == 20


def test_a_truncated_file_is_refused_at_every_place_but_behind_a_layout(path: Path) -> None:
    layouts = {"model.a": PLAIN, "model.b": PLAIN}
    data = strategy_bytes(layouts)
    first = len(data) - len(field(3, layout_item("model.b", PLAIN)))
    for end in range(1, len(data)):
        if end == first:
            # Nothing in the file says how many layouts there are; a comparison with the checkpoint does.
            assert read(path, data[:end]) == {"model.a": PLAIN}
        else:
            refusal(path, data[:end])


def test_the_message_of_a_cut_says_behind_which_parameter(path: Path) -> None:
    data = strategy_bytes({"model.a": PLAIN, "model.b": PLAIN})
    message = str(refusal(path, data[:-5]))
    assert "behind parameter 'model.a'" in message
    assert "cut short" in message


@settings(max_examples=examples(400), deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    cut=st.floats(0, 1),
    packed=st.booleans(),
)
def test_damage_ends_in_an_error_of_this_project_or_in_a_sound_strategy(
    tmp_path_factory: pytest.TempPathFactory, place: float, flip: int, cut: float, packed: bool
) -> None:
    layouts = {"model.a": Layout((2, 4), ((1, 0), ()), 1, -1, (3, 4)), "model.b": PLAIN, "1-c": PLAIN}
    data = bytearray(strategy_bytes(layouts, packed=packed))
    data[int(place * len(data))] ^= flip
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(data[: round((0.5 + cut) * len(data))])
    strategy = strategy_or_refusal(path)
    assert strategy is None or is_sound(strategy)


@settings(max_examples=examples(200), deadline=None)
@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"\x08\x01", b"\x1a", b"\x12", b"\n", b"{", b'{"a":']))
def test_random_bytes_end_in_an_error_of_this_project(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.ckpt"
    path.write_bytes(start + data)
    assert strategy_or_refusal(path) is None
