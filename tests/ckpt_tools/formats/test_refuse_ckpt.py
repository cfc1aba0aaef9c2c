"""Damaged, hostile and unsupported `.ckpt` files end in an error that says where and what, at a bounded cost."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from pathlib import Path

import pytest
from ckpt_bytes import field, floats, tensor, value, varint

from ckpt_tools.formats.ckpt import check_crc, crc_trailer, looks_like_ckpt, read_ckpt
from ckpt_tools.tensors.sources import open_source
from surgery.errors import CorruptInputError, EncryptedInputError, InputMissingError, UnknownFormatError

ONE = b"\x00\x00\x80\x3f"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ckpt"


def refusal(path: Path, data: bytes) -> CorruptInputError:
    """The error of reading a file; each problem in it names the file and says what was found."""
    path.write_bytes(data)
    with pytest.raises(CorruptInputError) as caught:
        read_ckpt(path)
    assert caught.value.exit_code == 4
    for problem in caught.value.problems:
        assert problem.where.startswith(str(path))
        assert problem.found
        assert problem.expected
        assert problem.remedy
    assert len(str(caught.value)) < 20_000
    assert "\0" not in str(caught.value)
    return caught.value


def test_a_file_that_is_not_there_is_missing(path: Path) -> None:
    with pytest.raises(InputMissingError):
        read_ckpt(path)


def test_an_empty_file_is_refused(path: Path) -> None:
    assert "an empty file" in str(refusal(path, b""))


@pytest.mark.parametrize(
    "data",
    [bytes(1000), b"PK\x03\x04" + bytes(50), b"\n\nwords in a text", b"crc_num" + bytes(10), b"\x10\x01", b"\x0a"],
)
def test_a_file_without_any_value_is_of_an_unknown_format(path: Path, data: bytes) -> None:
    assert isinstance(refusal(path, data), UnknownFormatError)


def test_every_cut_is_found_but_at_the_end_of_a_value_without_crc(path: Path) -> None:
    first, second = value("first", [2], "Float32", ONE * 2), value("second", [3, 0], "Int8", b"")
    data = first + second + value("third", [], "str", b"x\0\0\0") + crc_trailer(1)
    whole = {0: 0, len(first): 1, len(first + second): 2, len(data) - 17: 3, len(data): 3}
    for end in range(len(data)):
        if end in whole and end:
            # Legal: only what else knows the names (a manifest, an index, the base) can miss a tensor here.
            path.write_bytes(data[:end])
            assert len(read_ckpt(path).tensors) == whole[end]
        else:
            refusal(path, data[:end])


def test_the_message_of_a_cut_says_where(path: Path) -> None:
    data = floats("model.a") + floats("model.b", 100)
    message = str(refusal(path, data[:-1]))
    offset = len(floats("model.a"))
    assert f"{path}, byte {offset}, behind tensor 'model.a'" in message
    assert "cut short" in message


def test_values_that_were_cut_out_of_a_file_with_crc_are_found(path: Path) -> None:
    data = floats("a") + floats("b")
    path.write_bytes(floats("a") + crc_trailer(zlib.crc32(data)))
    checkpoint = read_ckpt(path)
    (source,) = checkpoint.sources
    with pytest.raises(CorruptInputError, match=r"x\.ckpt: expected .* as its end states, found CRC-32"):
        check_crc(source, checkpoint.crc[source])


def test_a_flipped_bit_is_found_by_the_crc(path: Path) -> None:
    data = bytearray(floats("a", 3_000_000 // 4))
    crc = zlib.crc32(data)
    data[2_500_000] ^= 0x10
    path.write_bytes(data + crc_trailer(crc))
    source = open_source(path)
    with pytest.raises(CorruptInputError):
        check_crc(source, read_ckpt(path).crc[source])
    data[2_500_000] ^= 0x10
    path.write_bytes(data + crc_trailer(crc))
    source = open_source(path)
    check_crc(source, read_ckpt(path).crc[source])


@pytest.mark.parametrize("length", range(1, 17))
def test_a_part_of_a_crc_trailer_is_refused(path: Path, length: int) -> None:
    refusal(path, floats("a") + crc_trailer(0x12345678)[:length])


@pytest.mark.parametrize(
    "trailer",
    [
        crc_trailer(1) + b"\0",
        crc_trailer(1) + floats("b"),
        crc_trailer(1) * 2,
        crc_trailer(2**32),
        b"crc_none" + bytes(9),
    ],
)
def test_a_wrong_crc_trailer_is_refused(path: Path, trailer: bytes) -> None:
    refusal(path, floats("a") + trailer)


@pytest.mark.parametrize(
    "number", [b"\x80" * 10 + b"\x01", b"\xff" * 9 + b"\x02", b"\x80" * 5000 + b"\x00", b"\x80" * 9 + b"\x80"]
)
def test_an_overlong_number_is_refused(path: Path, number: bytes) -> None:
    dims = b"\x08" + number + field(2, b"Int8") + field(3, b"")
    assert "64 bits" in str(refusal(path, field(1, field(1, b"w") + field(2, dims))))
    refusal(path, floats("a") + b"\x0a" + number + bytes(100))
    refusal(path, floats("a") + number + bytes(100))


@pytest.mark.parametrize("length", [1000, 2**31, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("depth", range(4))
def test_a_length_past_the_end_is_refused_at_each_level(path: Path, depth: int, length: int) -> None:
    inner = [
        b"\x0a" + varint(length),
        field(1, b"\x0a" + varint(length) + b"w"),
        field(1, field(1, b"w") + b"\x12" + varint(length) + b"\x08\x01"),
        field(1, field(1, b"w") + field(2, b"\x08\x01\x12\x04Int8\x1a" + varint(length) + b"\x01")),
    ][depth]
    assert f"announcing {length:,} bytes" in str(refusal(path, floats("a") + inner + floats("b")))


def test_groups_nested_deeply_are_refused_at_the_first(path: Path) -> None:
    groups = b"\x4b" * 10_000 + b"\x4c" * 10_000
    for data in (floats("a") + groups, field(1, field(1, b"w") + groups), field(1, field(1, b"w") + field(2, groups))):
        assert str(refusal(path, data)).count("a group in field 9") == 1


@pytest.mark.parametrize("key", [b"\x00", b"\x02", b"\x0e", b"\x0f", b"\x80\x80\x80\x80\x10"])
def test_what_is_no_field_is_refused(path: Path, key: bytes) -> None:
    refusal(path, floats("a") + key + bytes(10))
    refusal(path, field(1, field(1, b"w") + key + bytes(10)))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (field(1, field(2, tensor([1], "Int8", b"\x01"))), "without a name"),
        (value("", [1], "Int8", b"\x01"), "without a name"),
        (field(1, b""), "without a name"),
        (field(1, field(1, b"w")), "a name without a tensor"),
        (field(1, field(1, b"w") + field(2, b"\x08\x01" + field(3, b"\x01"))), "without a type"),
        (value("w", [1], "", b"\x01"), "without a type"),
        (field(1, field(1, b"w") + field(2, b"\x08\x01" + field(2, b"Int8"))), "without content"),
        (field(1, field(1, b"w") + field(2, b"")), "without a type"),
        (value(b"\xff\xfe", [1], "Int8", b"\x01"), "a name of"),
        (value("w", [1], b"\xff", b"\x01"), "a type of"),
        (value("w", [1], "T" * 65, b"\x01"), "a type of 65 bytes"),
        (value("n" * 1_000_000, [1], "Int8", b"\x01"), "a name of 1,000,000 bytes"),
        (field(1, field(1, b"w") * 2 + field(2, tensor([1], "Int8", b"\x01"))), "a second time"),
        (field(1, field(1, b"w") + field(2, tensor([1], "Int8", b"\x01")) * 2), "a second time"),
        (field(1, field(1, b"w") + field(2, tensor([1], "Int8", b"\x01") + field(2, b"Int8"))), "a second type"),
        (field(1, field(1, b"w") + field(2, tensor([1], "Int8", b"\x01") + field(3, b"\x02"))), "a second content"),
        (varint(8) + varint(5), "wire type 0 for a value"),
        (field(1, field(1, b"w") + b"\x10\x01"), "wire type 0 for a tensor"),
        (
            field(1, field(1, b"w") + field(2, b"\x0d\x00\x00\x00\x00" + field(2, b"Int8"))),
            "wire type 5 for a dimension",
        ),
        (field(1, field(1, b"w") + field(2, b"\x18\x01" + field(2, b"Int8"))), "wire type 0 for a type"),
    ],
)
def test_a_value_that_lacks_or_repeats_a_part_is_refused(path: Path, data: bytes, found: str) -> None:
    assert found in str(refusal(path, floats("before") + data + floats("behind")))


def test_a_name_twice_in_a_row_is_refused(path: Path) -> None:
    message = str(refusal(path, floats("w") + floats("w")))
    assert "tensor 'w'" in message
    assert "a second value of this name, behind one that is complete" in message
    for other in (
        value("w", [0, 3], "Int8", b""),
        value("w", [], "Int8", b"\1"),
        value("w", [0], "Int8", b"\1"),
        value("w", [0], "Int8", b""),
        value("w", [0], "str", b"x\0\0\0"),
    ):
        assert "a second value of this name" in str(refusal(path, other * 2))
    assert "a second value" in str(refusal(path, value("w", [0], "Int8", b"\1") + value("w", [0], "Int8", b"")))


def test_a_name_twice_with_others_between_is_refused(path: Path) -> None:
    message = str(refusal(path, floats("w") + floats("v") + floats("w")))
    assert "behind other tensors" in message
    assert f"byte {len(floats('w') + floats('v'))}, tensor 'w'" in message


def test_interleaved_slices_are_refused(path: Path) -> None:
    a, b = value("a", [2], "Float32", ONE), value("b", [2], "Float32", ONE)
    message = str(refusal(path, a + b + a + b))
    assert "the slices of a tensor one behind the other" in message
    assert "tensor 'a'" in message
    assert "tensor 'b'" in message


@pytest.mark.parametrize(
    "other", [value("w", [2], "Int32", ONE), value("w", [1, 2], "Float32", ONE), value("w", [3], "Float32", ONE)]
)
def test_slices_of_differing_types_or_dimensions_are_refused(path: Path, other: bytes) -> None:
    assert "a slice with Float32 and [2]" in str(refusal(path, value("w", [2], "Float32", ONE) + other))


@pytest.mark.parametrize(
    ("dims", "length", "word"),
    [
        ([2], 0, "short"),
        ([2], 4, "short"),
        ([2], 7, "short"),
        ([2], 9, "long"),
        ([2], 12, "long"),
        ([], 0, "short"),
        ([], 8, "long"),
        ([0], 8, "long"),
        ([0], 3, "long"),
        ([0, 3], 4, "long"),
    ],
)
def test_content_of_a_wrong_length_is_refused(path: Path, dims: list[int], length: int, word: str) -> None:
    message = str(refusal(path, value("w", dims, "Float32", bytes(length)) + floats("v")))
    assert "tensor 'w'" in message
    assert f"{length} bytes of content, which is too {word}" in message


def test_slices_that_are_too_long_together_are_refused(path: Path) -> None:
    cut = value("w", [3], "Float32", ONE * 2)
    assert "too long" in str(refusal(path, cut + cut))


@pytest.mark.parametrize(
    "dims",
    [[2**62], [2**62, 4], [2**31, 2**31], [2**63], [2**64 - 1], [0, 2**62], [2**40, 0, 2**40], [1] * 33, [2, 2**61]],
)
def test_dimensions_that_cannot_be_are_refused(path: Path, dims: list[int]) -> None:
    for content in (b"", ONE):
        message = str(refusal(path, value("w", dims, "Float32", content)))
        assert "tensor 'w'" in message


def test_negative_dimensions_are_shown_as_such(path: Path) -> None:
    assert "a dimension of -2" in str(refusal(path, value("w", [2**64 - 2], "Int8", b"")))


def test_packed_dimensions_without_end_are_refused_after_a_few(path: Path) -> None:
    packed = field(1, b"\x01" * 1_000_000)
    assert "more than 32 dimensions" in str(
        refusal(path, field(1, field(1, b"w") + field(2, packed + field(2, b"Int8") + field(3, b"\1"))))
    )


@pytest.mark.parametrize("type_name", ["float32", "Float4", "String", "Float8E8M0", "\u202e\0", "T" * 64])
def test_an_element_type_that_mindspore_does_not_write_is_refused_by_name(path: Path, type_name: str) -> None:
    error = refusal(path, value("w", [1], type_name, b"\1") + value("w", [1], type_name, b"\1"))
    assert isinstance(error, UnknownFormatError)
    assert repr(type_name) in str(error)
    assert len(error.problems) == 1


@pytest.mark.parametrize(
    ("dims", "content"),
    [
        ([0], b""),
        ([0], b"x\0\0"),
        ([0], b"x\0\0\0\0"),
        ([2], b"x\0\0\0"),
        ([1, 1], b"x\0\0\0"),
        ([0], b"\0\0\x11\0"),
        ([0], b"x\0\0\0" * 300_000 + b"\xff" * 4),
    ],
)
def test_a_bad_text_is_refused(path: Path, dims: list[int], content: bytes) -> None:
    assert "a text" in str(refusal(path, value("note", dims, "str", content)))


@pytest.mark.parametrize(
    ("magic", "cipher"), [(0xD8, "AES-GCM"), (0xD9, "AES-CBC"), (0xDA, "SM4-CBC"), (0xDB, "cipher")]
)
def test_an_encrypted_file_is_recognised(path: Path, magic: int, cipher: str) -> None:
    # The first block of a file that mindspore.save_checkpoint 2.9.0 wrote with enc_mode="AES-GCM".
    head = b"^:\x7f\xb7\x99\x93m\xb4\xdd\xd2\x1d\x1f\xca&\x1c'\xe6-\x8e0\x00\x00\x00\x10\x00\x00\x00Qi\x19\xbe\x9d"
    error = refusal(path, bytes([magic]) + head)
    assert isinstance(error, EncryptedInputError)
    assert cipher in str(error)
    assert "dec_key" in str(error)
    assert looks_like_ckpt(bytes([magic]) + head)


def test_a_map_parameter_is_refused_by_name(path: Path) -> None:
    table = field(1, tensor([1], "int32", bytes(4))) * 3
    error = refusal(path, floats("a") + field(1, field(1, b"embedding") + field(3, table)) + floats("b"))
    assert isinstance(error, UnknownFormatError)
    assert "tensor 'embedding': expected a tensor, found a map parameter" in str(error)


def test_all_problems_are_reported_at_once(path: Path) -> None:
    data = value("a", [2], "Int8", b"\1") + floats("fine") + value("b", [1], "Int8", b"\1\2")
    error = refusal(path, data + value("c", [1], "Float4", b"\1") + b"\x0a\x7f")
    assert [problem.where.rpartition(", ")[2] for problem in error.problems] == [
        "tensor 'a'",
        "tensor 'b'",
        "tensor 'c'",
        "behind tensor 'c'",
    ]
    assert not isinstance(error, UnknownFormatError)


def test_very_many_problems_are_not_all_reported(path: Path) -> None:
    error = refusal(path, b"".join(value(f"w{i}", [2], "Int8", b"\1") for i in range(10_000)))
    assert len(error.problems) == 20


def test_thirty_bytes_that_announce_2_to_the_62_elements_cost_nothing(path: Path) -> None:
    data = value("w", [2**62], "Int8", b"\1")
    assert len(data) <= 30
    tracemalloc.start()
    try:
        refusal(path, data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_content_costs_no_memory(path: Path) -> None:
    with open(path, "wb") as file:
        inner = b"\x08" + varint(2**33) + field(2, b"Int8") + b"\x1a" + varint(2**33)
        outer = field(1, b"w") + b"\x12" + varint(len(inner) + 2**33) + inner
        file.write(b"\x0a" + varint(len(outer) + 2**33) + outer)
        file.truncate(file.tell() + 2**33)
    tracemalloc.start()
    try:
        assert read_ckpt(path).tensors["w"].nbytes == 2**33
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    for path in (tmp_path, tmp_path / "pipe.ckpt"):
        with pytest.raises(CorruptInputError):
            read_ckpt(path)
