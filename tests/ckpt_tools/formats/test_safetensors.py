"""Reading safetensors files: what is accepted, and every way in which a file may lie."""

import json
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hostile import describe, file_bytes, small_file

from ckpt_tools.formats.safetensors import MAX_HEADER_BYTES, read_safetensors
from surgery.errors import CorruptInputError, InputMissingError, UnknownFormatError


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    return path


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(CorruptInputError) as caught:
        read_safetensors(write(tmp_path, data))
    return str(caught.value)


def header_refusal(tmp_path: Path, header: object, data: bytes = b"") -> str:
    return refusal(tmp_path, file_bytes(json.dumps(header).encode(), data))


def test_the_example_of_the_specification_is_read_by_its_bytes(tmp_path: Path) -> None:
    # Golden: the bytes that safetensors 0.8.0 writes for {"a": uint8 [1, 2]} with {"format": "pt"}.
    data = (
        b"\x58\0\0\0\0\0\0\0"
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
        b"    \x01\x02"
    )
    checkpoint = read_safetensors(write(tmp_path, data))
    assert checkpoint.format == "safetensors"
    assert not checkpoint.is_folder
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.tensors["a"].read_all().tolist() == [1, 2]
    assert checkpoint.tensors["a"].byte_runs()[0].offset == 96
    assert data == safetensors.numpy.save({"a": np.array([1, 2], np.uint8)}, {"format": "pt"})


@pytest.mark.parametrize(
    "numpy_type",
    ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "bfloat16", "float8_e4m3fn"],
)
def test_every_type_that_the_safetensors_package_writes_is_read_with_its_values(
    tmp_path: Path, numpy_type: str
) -> None:
    array = np.array([[0, 1, 2], [3, 0, 1]]).astype(getattr(ml_dtypes, numpy_type, numpy_type))
    safetensors.numpy.save_file({"x": array, "y": array[:1].copy()}, tmp_path / "x.safetensors")
    tensors = read_safetensors(tmp_path / "x.safetensors").tensors
    assert tensors["x"].read_all().dtype == array.dtype
    assert np.array_equal(tensors["x"].read_all(), array)
    assert tensors["y"].shape == (1, 3)


def test_scalars_and_tensors_without_elements_are_read(tmp_path: Path) -> None:
    arrays = {"empty": np.zeros((0, 3), np.float32), "scalar": np.full((), 7, np.float32), "none": np.zeros(0)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    tensors = read_safetensors(tmp_path / "x.safetensors").tensors
    assert tensors["scalar"].shape == ()
    assert tensors["scalar"].read_all() == 7
    assert tensors["empty"].read_all().shape == (0, 3)


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    assert not read_safetensors(write(tmp_path, file_bytes(b"{}"))).tensors


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        read_safetensors(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_room_for_its_length_is_corrupt(tmp_path: Path, size: int) -> None:
    assert "at least 8 bytes" in refusal(tmp_path, b"\0" * size)


def test_a_file_cut_at_any_byte_is_corrupt(tmp_path: Path) -> None:
    data = small_file({"a": np.zeros(2), "b": np.ones((1, 2))}, {"format": "pt"})
    for size in range(len(data)):
        refusal(tmp_path, data[:size])


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, MAX_HEADER_BYTES + 1])
def test_a_header_length_over_the_limit_is_refused_before_anything_is_read(tmp_path: Path, length: int) -> None:
    assert f"at most {MAX_HEADER_BYTES}" in refusal(tmp_path, struct.pack("<Q", length) + b"{}")


def test_a_header_longer_than_the_file_is_corrupt(tmp_path: Path) -> None:
    assert "2 bytes behind the length" in refusal(tmp_path, struct.pack("<Q", 3) + b"{}")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"k":"1","k":"2"}}',
        b'{"__metadata__":{},"__metadata__":{}}',
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    ],
)
def test_a_key_given_twice_is_corrupt(tmp_path: Path, header: bytes) -> None:
    assert "twice" in refusal(tmp_path, file_bytes(header))


def test_a_hole_between_tensors_is_corrupt(tmp_path: Path) -> None:
    header = {"a": describe("U8", [1], 0, 1), "b": describe("U8", [1], 2, 3)}
    assert "tensor 'b': expected it at 1, found a hole" in header_refusal(tmp_path, header, b"123")


def test_a_hole_before_the_first_tensor_is_corrupt(tmp_path: Path) -> None:
    assert "a hole" in header_refusal(tmp_path, {"a": describe("U8", [1], 1, 2)}, b"12")


def test_tensors_that_overlap_are_corrupt(tmp_path: Path) -> None:
    header = {"a": describe("U8", [2], 0, 2), "b": describe("U8", [2], 1, 3)}
    assert "an overlap" in header_refusal(tmp_path, header, b"123")


def test_two_tensors_on_the_same_bytes_are_corrupt(tmp_path: Path) -> None:
    header = {"a": describe("U8", [2], 0, 2), "b": describe("U8", [2], 0, 2)}
    assert "an overlap" in header_refusal(tmp_path, header, b"12")


def test_trailing_bytes_are_corrupt(tmp_path: Path) -> None:
    assert "trailing bytes" in header_refusal(tmp_path, {"a": describe("U8", [1], 0, 1)}, b"12")


def test_a_header_in_another_order_than_the_data_is_read_in_the_order_of_the_data(tmp_path: Path) -> None:
    header = {"late": describe("U8", [1], 1, 2), "early": describe("U8", [1], 0, 1)}
    checkpoint = read_safetensors(write(tmp_path, file_bytes(json.dumps(header).encode(), b"\x05\x06")))
    assert list(checkpoint.tensors) == ["early", "late"]
    assert checkpoint.tensors["late"].read_all() == [6]
    assert "not in the order of its data" in checkpoint.warnings[0]


@pytest.mark.parametrize("metadata", [{"k": 1}, {"k": None}, {"k": {"n": "s"}}, {"k": ["s"]}, "text", [], None, 3])
def test_metadata_that_is_no_object_of_strings_is_corrupt(tmp_path: Path, metadata: object) -> None:
    assert "__metadata__" in header_refusal(tmp_path, {"__metadata__": metadata})


def test_an_int4_mark_turns_int8_into_int4_and_is_no_metadata(tmp_path: Path) -> None:
    header = {"__metadata__": {"q": "Int4", "format": "ms"}, "q": describe("I8", [2], 0, 2)}
    checkpoint = read_safetensors(write(tmp_path, file_bytes(json.dumps(header).encode(), b"\x01\xff")))
    assert checkpoint.tensors["q"].dtype.name == "int4"
    assert checkpoint.metadata == {"format": "ms"}
    assert not checkpoint.warnings


@pytest.mark.parametrize(("key", "dtype"), [("Int4", "U8"), ("anything", "I8")])
def test_another_metadata_key_with_a_tensors_name_is_a_warning(tmp_path: Path, key: str, dtype: str) -> None:
    header = {"__metadata__": {"q": key}, "q": describe(dtype, [2], 0, 2)}
    checkpoint = read_safetensors(write(tmp_path, file_bytes(json.dumps(header).encode(), b"\x01\xff")))
    assert checkpoint.tensors["q"].dtype.safetensors == dtype
    assert "'q' is also a tensor's name" in checkpoint.warnings[0]


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "I4", "f32", "", "BF16 "])
def test_an_unknown_type_is_refused_with_the_tensors_name(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, file_bytes(json.dumps({"odd": describe(dtype, [2], 0, 1)}).encode(), b"1"))
    with pytest.raises(UnknownFormatError, match="'odd'"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "entry",
    [
        describe("F32", [1], 0, 3),
        describe("F32", [2**62, 4], 0, 4),
        describe("F32", [2**62, 0, 2**62], 0, 0),
        describe("F32", [-1, -1], 0, 4),
        describe("F32", [1] * 33, 0, 4),
        describe("F32", [True], 0, 4),
        describe("F32", [1.0], 0, 4),
        describe("F32", [1], 4, 0),
        describe("F32", [1], -4, 0),
        {**describe("F32", [1], 0, 4), "data_offsets": [0]},
        {**describe("F32", [1], 0, 4), "shape": "1"},
        {**describe("F32", [1], 0, 4), "extra": 1},
        {"dtype": "F32", "shape": [1]},
        {},
        [],
        "text",
        None,
    ],
)
def test_an_entry_that_contradicts_itself_is_corrupt_with_the_tensors_name(tmp_path: Path, entry: object) -> None:
    assert "tensor 'w'" in header_refusal(tmp_path, {"w": entry}, b"1234")


def test_all_wrong_tensors_are_reported_at_once_but_not_without_end(tmp_path: Path) -> None:
    message = header_refusal(tmp_path, {f"w{i}": describe("F32", [1], 0, 3) for i in range(100)})
    assert "'w0'" in message
    assert "'w19'" in message
    assert "80 problems" in message


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b" {}",
        b"\xef\xbb\xbf{}",
        b"{",
        b"{}{}",
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"\xff":1}',
        b"{\0}",
        b'{"a":' + b"9" * 5000,
        b'{"__metadata__":{"k":"\\udc00"}}',
        b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}',
    ],
)
def test_a_header_that_is_no_json_object_of_tensors_is_corrupt(tmp_path: Path, header: bytes) -> None:
    refusal(tmp_path, file_bytes(header))


@pytest.mark.parametrize("nest", [b"[", b'{"a":'])
def test_json_nested_a_hundred_thousand_deep_is_corrupt(tmp_path: Path, nest: bytes) -> None:
    assert "nested too deep" in refusal(tmp_path, file_bytes(b'{"a":' + nest * 100_000))


def test_names_of_any_unicode_are_read(tmp_path: Path) -> None:
    names = ["", "../x", "\u202egnp", "nul\0", "é", "n" * 1_000_000]
    safetensors.numpy.save_file({name: np.ones(1, np.uint8) for name in names}, tmp_path / "x.safetensors")
    assert set(read_safetensors(tmp_path / "x.safetensors").tensors) == set(names)


def test_a_name_of_a_megabyte_is_shortened_in_an_error(tmp_path: Path) -> None:
    assert len(header_refusal(tmp_path, {"n" * 1_000_000: describe("F32", [1], 0, 3)}, b"123")) < 1000


def test_a_sparse_file_over_four_gigabytes_is_read_without_touching_its_data(tmp_path: Path) -> None:
    size = 5 * 2**30
    header = json.dumps({"big": describe("U8", [size], 0, size)}).encode()
    path = write(tmp_path, file_bytes(header))
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + size)
        file.seek(-1, 2)
        file.write(b"\x07")
    tracemalloc.start()
    big = read_safetensors(path).tensors["big"]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20
    assert big.nbytes == size
    assert big.read(((size - 2, size),)).tolist() == [0, 7]


def test_numbers_of_thousands_of_digits_do_not_make_a_message_of_as_many(tmp_path: Path) -> None:
    assert len(header_refusal(tmp_path, {"w": describe("F32", [10**4000] * 30, 0, 4)}, b"1234")) < 2000
