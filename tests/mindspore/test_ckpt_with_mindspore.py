"""`.ckpt` files exchanged with real MindSpore, in both directions, and the wire compared with protobuf's own parser."""

from __future__ import annotations

import math
import time
import zlib
from pathlib import Path
from typing import Any

import mindspore
import ml_dtypes
import numpy as np
import pytest
from helpers import materialise
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Parameter, Tensor
from mindspore.train import serialization
from mindspore.train.checkpoint_pb2 import Checkpoint as ProtobufCheckpoint

from ckpt_tools.formats.ckpt import check_crc, crc_trailer, layout_ckpt, read_ckpt
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.dtypes import BY_MINDSPORE_NAME, BY_NAME
from ckpt_tools.tensors.views import Constant
from surgery.errors import CorruptInputError, EncryptedInputError

LOADED = {
    "bool": mindspore.bool_,
    "int4": mindspore.common.dtype.qint4x2,
    "int8": mindspore.int8,
    "int16": mindspore.int16,
    "int32": mindspore.int32,
    "int64": mindspore.int64,
    "uint8": mindspore.uint8,
    "uint16": mindspore.uint16,
    "uint32": mindspore.uint32,
    "uint64": mindspore.uint64,
    "fp16": mindspore.float16,
    "fp32": mindspore.float32,
    "fp64": mindspore.float64,
    "bf16": mindspore.bfloat16,
}
ONLY_SAVED = {
    "fp8_e4m3": mindspore.common.dtype.float8_e4m3fn,
    "fp8_e5m2": mindspore.common.dtype.float8_e5m2,
    "hifloat8": mindspore.common.dtype.hifloat8,
    "complex64": mindspore.complex64,
    "complex128": mindspore.complex128,
}
SHAPES: tuple[tuple[int, ...], ...] = ((2, 3), (), (1,), (4, 1, 2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ckpt"


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """MindSpore's slice size, which it holds in KiB, made small: 1,024 bytes."""
    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)
    return 1024


def values_of(dtype: str, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    ramp = np.arange(1, count + 1).reshape(shape)
    if dtype == "int4":
        return Tensor((ramp % 8).astype(np.int8), LOADED["int4"])
    if dtype == "hifloat8":
        return Tensor(ramp.astype(np.float64), ONLY_SAVED[dtype])
    return Tensor(ramp, (LOADED | ONLY_SAVED)[dtype])


def save(path: Path, tensors: dict[str, Tensor], **options: Any) -> bytes:
    mindspore.save_checkpoint([{"name": name, "data": data} for name, data in tensors.items()], str(path), **options)
    while mindspore.async_ckpt_thread_status():
        time.sleep(0.01)
    return path.read_bytes()


def lay_out_again(path: Path, slice_bytes: int = 512 * 2**20) -> bytes:
    tensors: list[NamedTensor] = list(read_ckpt(path).tensors.items())
    return materialise(layout_ckpt(tensors, slice_bytes), tensors)


def constant(dtype: str, array: np.ndarray) -> Constant:
    return Constant(array, BY_NAME[dtype])


def write(path: Path, tensors: list[NamedTensor], slice_bytes: int = 512 * 2**20) -> None:
    path.write_bytes(materialise(layout_ckpt(tensors, slice_bytes), tensors))


@pytest.mark.parametrize("dtype", [*LOADED, *ONLY_SAVED])
def test_each_type_is_read_from_mindspore_and_laid_out_byte_for_byte(path: Path, dtype: str) -> None:
    saved = {f"w{len(shape)}{i}": values_of(dtype, shape) for i, shape in enumerate(SHAPES)}
    data = save(path, saved)
    checkpoint = read_ckpt(path)
    assert {name: (str(t.dtype), t.shape) for name, t in checkpoint.tensors.items()} == {
        name: (dtype, tuple(tensor.shape)) for name, tensor in saved.items()
    }
    for name, tensor in saved.items():
        assert checkpoint.tensors[name].read_all().tobytes() == tensor.get_bytes()
    assert lay_out_again(path) == data


def test_the_table_of_types_names_every_number_type_that_mindspore_has() -> None:
    types = {getattr(mindspore.common.dtype, name) for name in dir(mindspore.common.dtype) if name[0].islower()} - {
        mindspore.common.dtype.number
    }
    numbers = {str(t) for t in types if type(t).__name__ in ("Bool", "Int", "UInt", "Float", "BFloat", "Complex")}
    generic = {"Int", "UInt", "Float"}
    assert numbers - generic == set(BY_MINDSPORE_NAME) - {"str"}


@pytest.mark.parametrize("dtype", LOADED)
def test_each_type_that_is_laid_out_loads_in_mindspore(path: Path, dtype: str) -> None:
    numpy_type = BY_NAME[dtype].numpy
    arrays = {f"w{i}": np.arange(math.prod(shape)).reshape(shape).astype(numpy_type) for i, shape in enumerate(SHAPES)}
    write(path, [(name, constant(dtype, array)) for name, array in arrays.items()])
    loaded = mindspore.load_checkpoint(str(path))
    for name, array in arrays.items():
        assert str(loaded[name].dtype) == BY_NAME[dtype].mindspore
        assert tuple(loaded[name].shape) == array.shape
        assert loaded[name].get_bytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ONLY_SAVED)
def test_mindspore_does_not_load_some_of_the_types_that_it_saves_and_the_reader_says_so(path: Path, dtype: str) -> None:
    save(path, {"w": values_of(dtype, (2,))})
    with pytest.raises(ValueError, match=str(BY_NAME[dtype].mindspore)):
        mindspore.load_checkpoint(str(path))
    assert "cannot read" in read_ckpt(path).warnings[0]


def test_flat_slices_are_read_and_laid_out_byte_for_byte(path: Path, small_slices: int) -> None:
    saved = {
        "before": values_of("fp32", (3,)),
        "odd": values_of("bf16", (3, 700)),
        "row": values_of("fp32", (1, 1000)),
        "just": values_of("fp32", (256,)),
        "twice": values_of("fp32", (512,)),
        "behind": values_of("fp32", ()),
    }
    data = save(path, saved, crc_check=True)
    checkpoint = read_ckpt(path)
    assert [len(tensor.runs) for tensor in checkpoint.tensors.values()] == [1, 5, 4, 1, 2, 1]
    for name, tensor in saved.items():
        assert checkpoint.tensors[name].read_all().tobytes() == tensor.get_bytes()
    again = lay_out_again(path, small_slices)
    assert again == data[:-17]
    (source,) = checkpoint.sources
    assert crc_trailer(checkpoint.crc[source]) == data[-17:]


@pytest.mark.parametrize("shape", [(3, 700), (7, 100), (1, 1000), (2, 1000), (5, 3, 200)])
def test_slices_of_ndarrays_are_read(path: Path, small_slices: int, shape: tuple[int, ...]) -> None:
    saved = {"before": values_of("int8", (3,)), "w": values_of("fp32", shape), "behind": values_of("int8", (3,))}
    data = save(path, saved, async_save=True)  # which saves ndarrays
    message = ProtobufCheckpoint()
    message.ParseFromString(data)
    contents = [len(v.tensor.tensor_content) for v in message.value if v.tag == "w"]
    assert len(set(contents)) > 1, "uneven slices, or empty ones at the end"
    tensor = read_ckpt(path).tensors["w"]
    assert [run.length for run in tensor.runs] == [length for length in contents if length]
    assert tensor.read_all().tobytes() == saved["w"].get_bytes()


def test_slices_that_are_laid_out_load_in_mindspore(path: Path) -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    write(path, [("a", constant("int8", np.ones(3, np.int8))), ("w", constant("fp32", array))], slice_bytes=333)
    assert mindspore.load_checkpoint(str(path))["w"].asnumpy().tolist() == array.tolist()


def test_the_crc_of_mindspore_holds_and_a_flipped_bit_is_found(path: Path) -> None:
    data = bytearray(save(path, {"w": values_of("fp32", (100,))}, crc_check=True))
    checkpoint = read_ckpt(path)
    (source,) = checkpoint.sources
    check_crc(source, checkpoint.crc[source])
    path.unlink()
    data[100] ^= 1
    path.write_bytes(data)
    checkpoint = read_ckpt(path)
    (source,) = checkpoint.sources
    with pytest.raises(CorruptInputError):
        check_crc(source, checkpoint.crc[source])


def test_a_file_with_our_trailer_passes_the_check_of_mindspore(path: Path) -> None:
    tensors: list[NamedTensor] = [("w", constant("fp32", np.arange(5, dtype=np.float32)))]
    data = materialise(layout_ckpt(tensors), tensors)
    path.write_bytes(data + crc_trailer(zlib.crc32(data)))
    assert mindspore.load_checkpoint(str(path), crc_check=True)["w"].asnumpy().tolist() == [0, 1, 2, 3, 4]
    path.write_bytes(data + crc_trailer(zlib.crc32(data) ^ 1))
    with pytest.raises(ValueError, match="Failed to read"):
        mindspore.load_checkpoint(str(path), crc_check=True)


@pytest.mark.parametrize("text", ["hello", "", "añ😀", "x\0", "a" * 1000])
def test_texts_and_training_scalars_are_read_and_laid_out_byte_for_byte(path: Path, text: str) -> None:
    state = {"note": text, "epoch_num": 3, "learning_rate": 0.5, "flag": True}
    data = save(path, {"w": values_of("fp32", (1,))}, append_dict=state)
    tensors = read_ckpt(path).tensors
    assert tensors["note"].read_all().tobytes().decode("utf-32-le").rstrip("\0") == text.rstrip("\0")
    scalars = {
        name: (str(t.dtype), t.shape, t.read_all().item()) for name, t in tensors.items() if name in list(state)[1:]
    }
    assert scalars == {"epoch_num": ("int64", (), 3), "learning_rate": ("fp32", (), 0.5), "flag": ("bool", (), True)}
    again = lay_out_again(path)
    assert again == data
    path.unlink()
    path.write_bytes(again)
    assert mindspore.load_checkpoint(str(path))["note"] == text.rstrip("\0")


def test_a_network_is_read_under_its_parameters_names(path: Path) -> None:
    network = mindspore.nn.SequentialCell(mindspore.nn.Dense(3, 4), mindspore.nn.LayerNorm((4,)))
    mindspore.save_checkpoint(network, str(path))
    tensors = read_ckpt(path).tensors
    expected = {name: parameter.asnumpy().tolist() for name, parameter in network.parameters_dict().items()}
    assert {name: tensor.read_all().tolist() for name, tensor in tensors.items()} == expected


def test_a_dictionary_of_arrays_is_laid_out_byte_for_byte(path: Path) -> None:
    mindspore.save_checkpoint({"w": np.ones((2, 3), np.float32)}, str(path))
    assert lay_out_again(path) == path.read_bytes()


def test_mindspore_drops_tensors_without_elements_and_loads_ours_but_for_one_shape(path: Path) -> None:
    empty = {"rows": (0, 3), "columns": (3, 0), "axis": (0,)}
    assert save(path, {name: Tensor(np.zeros(shape, np.float32)) for name, shape in empty.items()}) == b""
    path.unlink()
    write(path, [(name, constant("fp32", np.zeros(shape, np.float32))) for name, shape in empty.items()])
    assert {name: tensor.shape for name, tensor in read_ckpt(path).tensors.items()} == empty
    loaded = {name: tuple(parameter.shape) for name, parameter in mindspore.load_checkpoint(str(path)).items()}
    # MindSpore takes dimensions [0] for its own old way of writing a scalar.
    assert loaded == {"rows": (0, 3), "columns": (3, 0), "axis": ()}


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_encrypted_files_are_recognised(path: Path, mode: str) -> None:
    save(path, {"w": values_of("fp32", (9,))}, enc_key=b"0123456789ABCDEF", enc_mode=mode)
    with pytest.raises(EncryptedInputError, match=mode):
        read_ckpt(path)


def test_bfloat16_values_are_those_of_mindspore(path: Path) -> None:
    save(path, {"w": Parameter(Tensor([1.0, -2.5, 3.140625], mindspore.bfloat16))})
    values = read_ckpt(path).tensors["w"].read_all()
    assert values.dtype == np.dtype(ml_dtypes.bfloat16)
    assert values.astype(np.float32).tolist() == [1.0, -2.5, 3.140625]


@st.composite
def arrays(draw: st.DrawFn) -> Constant:
    dtype = BY_NAME[draw(st.sampled_from([*LOADED, *ONLY_SAVED]))]
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = math.prod(shape) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    return Constant(np.frombuffer(content, dtype.numpy).reshape(shape), dtype)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), arrays(), max_size=5),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_protobuf_parses_what_is_laid_out_and_would_write_the_same(
    named: dict[str, Constant], slice_bytes: int
) -> None:
    data = materialise(layout_ckpt(list(named.items()), slice_bytes), list(named.items()))
    message = ProtobufCheckpoint()
    message.ParseFromString(data)
    assert message.SerializeToString() == data
    contents: dict[str, bytes] = {}
    for value in message.value:
        assert tuple(value.tensor.dims) == named[value.tag].shape
        assert value.tensor.tensor_type == named[value.tag].dtype.mindspore
        assert len(value.tensor.tensor_content) <= slice_bytes
        contents[value.tag] = contents.get(value.tag, b"") + value.tensor.tensor_content
    assert contents == {name: tensor.read_all().tobytes() for name, tensor in named.items()}
