"""Sound `.ckpt` files, as MindSpore or another protobuf writer leaves them, are read as what they mean."""

from __future__ import annotations

import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ckpt_bytes import field, floats, tensor, value, varint

from ckpt_tools.formats.ckpt import check_crc, crc_trailer, looks_like_ckpt, read_ckpt
from ckpt_tools.formats.model import Checkpoint

# Written by mindspore.save_checkpoint 2.9.0 (CPU), crc_check=True, append_dict={"epoch_num": 3, "note": "hé"}.
GOLDEN = (
    b"\n.\n\x0fmodel.wq.weight\x12\x1b\x08\x02\x08\x03\x12\x07Float16\x1a\x0c\x00\x00\x00<\x00@\x00B\x00D\x00E"
    b"\n5\n\x1dmodel.wq.mindpet_delta_lora_a\x12\x14\x08\x01\x08\x02\x12\x08BFloat16\x1a\x04\x00?\x80\xbf"
    b"\n\x14\n\x04mask\x12\x0c\x08\x02\x12\x04Bool\x1a\x02\x01\x00"
    b"\n\x18\n\x05scale\x12\x0f\x12\x07Float32\x1a\x04\x00\x00 @"
    b"\n\x1e\n\tepoch_num\x12\x11\x12\x05Int64\x1a\x08\x03\x00\x00\x00\x00\x00\x00\x00"
    b"\n\x19\n\x04note\x12\x11\x08\x00\x12\x03str\x1a\x08h\x00\x00\x00\xe9\x00\x00\x00"
    b"crc_num\x00\x00\x00\x00\x00\x00\x9d\x99\x12h"
)

# Written by mindspore.save_checkpoint 2.9.0 with its SLICE_SIZE set to 8 bytes and async_save=True, which saves
# ndarrays: int8 of (5, 4), (2, 9) and (1, 10).
GOLDEN_SLICES = (
    b"\n\x19\n\x01w\x12\x14\x08\x05\x08\x04\x12\x04Int8\x1a\x08\x00\x01\x02\x03\x04\x05\x06\x07"
    b"\n\x19\n\x01w\x12\x14\x08\x05\x08\x04\x12\x04Int8\x1a\x08\x08\t\n\x0b\x0c\r\x0e\x0f"
    b"\n\x15\n\x01w\x12\x10\x08\x05\x08\x04\x12\x04Int8\x1a\x04\x10\x11\x12\x13"
)
GOLDEN_TRAILING_EMPTY_SLICE = (
    b"\n\x1a\n\x01w\x12\x15\x08\x02\x08\t\x12\x04Int8\x1a\t\x00\x01\x02\x03\x04\x05\x06\x07\x08"
    b"\n\x1a\n\x01w\x12\x15\x08\x02\x08\t\x12\x04Int8\x1a\t\t\n\x0b\x0c\r\x0e\x0f\x10\x11"
    b"\n\x11\n\x01w\x12\x0c\x08\x02\x08\t\x12\x04Int8\x1a\x00"
)
GOLDEN_UNCUT_ROW = (
    b"\n\x1b\n\x01w\x12\x16\x08\x01\x08\n\x12\x04Int8\x1a\n\x00\x01\x02\x03\x04\x05\x06\x07\x08\t"
    b"\n\x11\n\x01w\x12\x0c\x08\x01\x08\n\x12\x04Int8\x1a\x00"
)


def read(tmp_path: Path, data: bytes) -> Checkpoint:
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    return read_ckpt(path)


def test_a_file_written_by_mindspore_is_read(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, GOLDEN)
    assert (checkpoint.format, checkpoint.is_folder, checkpoint.warnings) == ("ckpt", False, ())
    assert {name: (str(t.dtype), t.shape, t.read_all().tolist()) for name, t in checkpoint.tensors.items()} == {
        "model.wq.weight": ("fp16", (2, 3), [[0, 1, 2], [3, 4, 5]]),
        "model.wq.mindpet_delta_lora_a": ("bf16", (1, 2), [[0.5, -1]]),
        "mask": ("bool", (2,), [True, False]),
        "scale": ("fp32", (), 2.5),
        "epoch_num": ("int64", (), 3),
        "note": ("str", (2,), [ord("h"), ord("é")]),
    }
    assert next(iter(checkpoint.tensors)) == "model.wq.weight"


def test_the_crc_of_a_file_written_by_mindspore_is_found_and_holds(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, GOLDEN)
    (source,) = checkpoint.sources
    assert checkpoint.crc == {source: 0x9D991268}
    check_crc(source, checkpoint.crc[source])


def test_crc_trailer_is_what_mindspore_appends() -> None:
    assert crc_trailer(zlib.crc32(GOLDEN[:-17])) == GOLDEN[-17:]


def test_a_file_without_a_trailer_has_no_crc(tmp_path: Path) -> None:
    assert read(tmp_path, GOLDEN[:-17]).crc == {}


@pytest.mark.parametrize(
    ("data", "shape", "runs"),
    [(GOLDEN_SLICES, (5, 4), 3), (GOLDEN_TRAILING_EMPTY_SLICE, (2, 9), 2), (GOLDEN_UNCUT_ROW, (1, 10), 1)],
)
def test_slices_of_an_ndarray_are_one_tensor(tmp_path: Path, data: bytes, shape: tuple[int, ...], runs: int) -> None:
    tensor = read(tmp_path, data + floats("next")).tensors["w"]
    assert tensor.shape == shape
    assert len(tensor.runs) == runs
    assert tensor.read_all().reshape(-1).tolist() == list(range(tensor.size))


def test_slices_need_not_end_at_an_element(tmp_path: Path) -> None:
    content = np.array([1.5, -2.0], np.float32).tobytes()
    cut = [value("w", [2], "Float32", piece) for piece in (content[:3], content[3:5], content[5:])]
    assert read(tmp_path, b"".join(cut)).tensors["w"].read_all().tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("dims", "content", "shape"),
    [
        ([], b"\x07", ()),
        ([0], b"\x07", ()),  # how older versions of MindSpore state a scalar
        ([0], b"", (0,)),
        ([0, 3], b"", (0, 3)),
        ([3, 0], b"", (3, 0)),
        ([1], b"\x07", (1,)),
    ],
)
def test_scalars_and_tensors_without_elements_are_told_apart(
    tmp_path: Path, dims: list[int], content: bytes, shape: tuple[int, ...]
) -> None:
    tensor = read(tmp_path, value("w", dims, "UInt8", content)).tensors["w"]
    assert tensor.shape == shape
    assert tensor.read_all().tobytes() == content


def test_packed_dimensions_other_orders_and_unknown_fields_are_legal(tmp_path: Path) -> None:
    unknown = varint(9 * 8) + varint(2**64 - 1) + varint(9 * 8 + 1) + bytes(8) + varint(9 * 8 + 5) + bytes(4)
    unknown += field(9, b"\x0a\x05")
    inner = unknown + field(3, bytes(12)) + unknown + field(2, b"Int16") + field(1, varint(2) + varint(3))
    outer = field(2, inner) + unknown + field(1, b"w")
    checkpoint = read(tmp_path, unknown + field(1, outer) + unknown + floats("v"))
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {"w": (2, 3), "v": (1,)}


def test_a_number_may_be_padded_up_to_ten_bytes(tmp_path: Path) -> None:
    padded = b"\x08\x82" + b"\x80" * 8 + b"\x00" + field(2, b"Int8") + field(3, b"\x01\x02")
    assert read(tmp_path, field(1, field(1, b"w") + field(2, padded))).tensors["w"].shape == (2,)


def test_crc_num_inside_of_data_is_data(tmp_path: Path) -> None:
    content = b"crc_num" + bytes(9) + b"\x01"
    checkpoint = read(tmp_path, value("a", [17], "Int8", content) + value("crc_num", [17], "Int8", content))
    assert checkpoint.crc == {}
    assert checkpoint.tensors["crc_num"].read_all().tobytes() == content


def test_int4_is_a_byte_an_element(tmp_path: Path) -> None:
    tensor = read(tmp_path, value("w", [3], "Int4", b"\x01\xff\x07")).tensors["w"]
    assert (str(tensor.dtype), tensor.read_all().tolist()) == ("int4", [1, -1, 7])


@pytest.mark.parametrize(
    ("type_name", "dtype", "numpy"),
    [
        ("Float8E4M3FN", "fp8_e4m3", ml_dtypes.float8_e4m3fn),
        ("Float8E5M2", "fp8_e5m2", ml_dtypes.float8_e5m2),
        ("HiFloat8", "hifloat8", np.uint8),
        ("Complex64", "complex64", np.complex64),
        ("Complex128", "complex128", np.complex128),
    ],
)
def test_types_that_mindspore_writes_but_does_not_load_are_read_with_a_warning(
    tmp_path: Path, type_name: str, dtype: str, numpy: type
) -> None:
    content = bytes(range(2 * np.dtype(numpy).itemsize))
    checkpoint = read(tmp_path, value("w", [2], type_name, content))
    tensor = checkpoint.tensors["w"]
    assert (str(tensor.dtype), tensor.dtype.numpy) == (dtype, np.dtype(numpy))
    assert tensor.read_all().tobytes() == content
    assert type_name in checkpoint.warnings[0]


@pytest.mark.parametrize("name", ["a\0b", "../../etc/passwd", "\u202etxt.wq", "n" * 65_536, " ", "\n"])
def test_a_name_may_hold_any_character(tmp_path: Path, name: str) -> None:
    checkpoint = read(tmp_path, floats(name))
    assert list(checkpoint.tensors) == [name]
    assert bool(checkpoint.warnings) is not name.isprintable()
    assert all(warning.isprintable() for warning in checkpoint.warnings)


@pytest.mark.parametrize("length", [16_300, 16_384])
def test_headers_are_read_wherever_they_lie(tmp_path: Path, length: int) -> None:
    # The reader's window is 16 KiB: this moves the headers behind the first tensor over the end of it, byte by byte.
    names = [f"model.layers.{i}.attention.wq.weight" for i in range(200)]
    for shift in range(0, 90, 11):
        data = value("first", [length + shift], "Int8", bytes(length + shift))
        data += b"".join(value(name, [i, 2], "UInt8", bytes([i % 256]) * 2 * i) for i, name in enumerate(names))
        tensors = read(tmp_path, data).tensors
        assert list(tensors) == ["first", *names]
        assert all(
            tensors[name].read(((i - 1, i), (0, 2))).tolist() == [[i % 256] * 2] for i, name in enumerate(names) if i
        )


def test_warnings_are_bounded(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, b"".join(floats(f"\x1b{i}") for i in range(500)))
    assert len(checkpoint.tensors) == 500
    assert len(checkpoint.warnings) == 21


def test_a_value_over_2_gib_and_a_file_over_4_gib_are_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.ckpt"
    size = 5 * 2**30

    def head(name: bytes) -> bytes:
        inner = b"\x08" + varint(size // 2) + field(2, b"BFloat16") + b"\x1a" + varint(size)
        outer = field(1, name) + b"\x12" + varint(len(inner) + size)
        return b"\x0a" + varint(len(outer) + len(inner) + size) + outer + inner

    with open(path, "wb") as file:
        file.write(head(b"first"))
        file.truncate(file.tell() + size)
        file.seek(0, 2)
        file.write(head(b"second"))
        file.truncate(file.tell() + size - 2)
        file.seek(0, 2)
        file.write(b"\x80\x3f" + crc_trailer(7))
    checkpoint = read_ckpt(path)
    assert {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()} == {"first": size, "second": size}
    assert checkpoint.tensors["second"].read(((size // 2 - 2, size // 2),)).tolist() == [0, 1]
    assert list(checkpoint.crc.values()) == [7]


@pytest.mark.parametrize("length", [2, 8, 16, 64, 512])
def test_a_ckpt_is_recognised_by_its_first_bytes(length: int) -> None:
    assert looks_like_ckpt(GOLDEN[: max(length, 4)])
    assert looks_like_ckpt(floats("n" * 1000)[:length] if length > 4 else floats("n"))
    assert looks_like_ckpt(field(1, field(2, tensor([1], "Int8", b"\0")) + field(1, b"w"))[: max(length, 3)])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n",
        b"PK\x03\x04",
        b"\x80\x02}q\x00",
        b"\n\nsome text in a file",
        b"\n\x0a\x0a\x64 the inner is longer",
        b"\x08\x01\x12\x10a strategy file",
        bytes(64),
        b"\x10\x00\x00\x00\x00\x00\x00\x00{}",
        b"crc_num" + bytes(10),
    ],
)
def test_other_files_are_not_taken_for_a_ckpt(head: bytes) -> None:
    assert not looks_like_ckpt(head)
