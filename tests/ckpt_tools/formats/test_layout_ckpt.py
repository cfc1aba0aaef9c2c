"""What `layout_ckpt` lays out is what MindSpore would write, and reads back as what went in."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from ckpt_bytes import value
from helpers import materialise
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.formats.ckpt import SLICE_BYTES, layout_ckpt, read_ckpt
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import Stored
from ckpt_tools.tensors.views import Constant
from surgery.errors import MismatchError


def constant(dtype: str, shape: tuple[int, ...], content: bytes) -> Constant:
    return Constant(np.frombuffer(content, BY_NAME[dtype].numpy).reshape(shape), BY_NAME[dtype])


def laid_out(tensors: list[NamedTensor], slice_bytes: int = SLICE_BYTES) -> bytes:
    return materialise(layout_ckpt(tensors, slice_bytes), tensors)


def test_the_layout_of_all_kinds_is_that_of_mindspore() -> None:
    # Written by mindspore.save_checkpoint 2.9.0 (CPU), append_dict={"epoch_num": 3, "note": "hé"}.
    golden = (
        b"\n.\n\x0fmodel.wq.weight\x12\x1b\x08\x02\x08\x03\x12\x07Float16\x1a\x0c\x00\x00\x00<\x00@\x00B\x00D\x00E"
        b"\n5\n\x1dmodel.wq.mindpet_delta_lora_a\x12\x14\x08\x01\x08\x02\x12\x08BFloat16\x1a\x04\x00?\x80\xbf"
        b"\n\x14\n\x04mask\x12\x0c\x08\x02\x12\x04Bool\x1a\x02\x01\x00"
        b"\n\x18\n\x05scale\x12\x0f\x12\x07Float32\x1a\x04\x00\x00 @"
        b"\n\x1e\n\tepoch_num\x12\x11\x12\x05Int64\x1a\x08\x03\x00\x00\x00\x00\x00\x00\x00"
        b"\n\x19\n\x04note\x12\x11\x08\x00\x12\x03str\x1a\x08h\x00\x00\x00\xe9\x00\x00\x00"
    )
    tensors: list[NamedTensor] = [
        ("model.wq.weight", constant("fp16", (2, 3), np.arange(6, dtype=np.float16).tobytes())),
        ("model.wq.mindpet_delta_lora_a", constant("bf16", (1, 2), b"\x00\x3f\x80\xbf")),
        ("mask", constant("bool", (2,), b"\x01\x00")),
        ("scale", constant("fp32", (), np.float32(2.5).tobytes())),
        ("epoch_num", constant("int64", (), np.int64(3).tobytes())),
        ("note", constant("str", (2,), "hé".encode("utf-32-le"))),
    ]
    assert laid_out(tensors) == golden


def test_a_large_tensor_is_cut_flat_into_slices_that_repeat_the_dimensions() -> None:
    content = bytes(range(20))
    data = laid_out([("w", constant("int8", (4, 5), content))], slice_bytes=8)
    assert data == b"".join(value("w", [4, 5], "Int8", content[i : i + 8]) for i in (0, 8, 16))


def test_a_tensor_of_just_the_slice_size_is_not_cut() -> None:
    content = bytes(range(16))
    assert laid_out([("w", constant("int8", (16,), content))], 16) == value("w", [16], "Int8", content)
    assert laid_out([("w", constant("int8", (16,), content))], 8) == (
        value("w", [16], "Int8", content[:8]) + value("w", [16], "Int8", content[8:])
    )


def test_the_slice_size_is_that_of_mindspore() -> None:
    assert SLICE_BYTES == 512 * 1024 * 1024


def test_a_text_is_never_cut() -> None:
    text = "a longer text".encode("utf-32-le")
    assert laid_out([("note", constant("str", (13,), text))], slice_bytes=8) == value("note", [0], "str", text)


def test_a_tensor_without_elements_is_kept() -> None:
    assert laid_out([("w", constant("fp32", (0, 3), b""))]) == value("w", [0, 3], "Float32", b"")


def test_a_tensor_over_4_gib_is_laid_out_without_reading_it() -> None:
    tensor = Stored(BY_NAME["bf16"], (2**16, 2**17), ())
    layout = layout_ckpt([("w", tensor), ("v", constant("int8", (1,), b"\1"))])
    assert [payload.stop - payload.start for payload in layout.payloads] == [SLICE_BYTES] * 32 + [1]
    assert layout.size == 2**34 + 1 + sum(len(data) for _, data in layout.literals)


def test_a_type_without_a_name_in_the_format_is_refused_with_the_formats_that_have_one() -> None:
    with pytest.raises(MismatchError, match=r"'w': element type fp8_e8m0.*It fits into: safetensors"):
        layout_ckpt([("w", constant("fp8_e8m0", (1,), b"\1"))])


@pytest.mark.parametrize(
    "tensors",
    [
        [("", constant("int8", (1,), b"\1"))],
        [("w", constant("int8", (1,), b"\1"))] * 2,
        [("\ud800", constant("int8", (1,), b"\1"))],
        [("w", constant("str", (1, 1), b"x\0\0\0"))],
        [("w", constant("str", (), b"x\0\0\0"))],
        [("w", constant("str", (0,), b""))],
    ],
)
def test_what_could_not_be_read_back_is_refused(tensors: list[NamedTensor]) -> None:
    with pytest.raises(MismatchError):
        layout_ckpt(tensors)


def test_all_refusals_are_reported_at_once() -> None:
    with pytest.raises(MismatchError) as caught:
        layout_ckpt([(name, constant("fp8_e8m0", (1,), b"\1")) for name in "abc"])
    assert len(caught.value.problems) == 3


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
DTYPES = st.sampled_from([dtype for dtype in BY_NAME.values() if dtype.mindspore is not None])


@st.composite
def tensors(draw: st.DrawFn) -> Constant:
    dtype: DType = draw(DTYPES)
    if dtype.name == "str":
        points = draw(st.lists(st.integers(0, 0x10FFFF), min_size=1, max_size=9))
        return Constant(np.array(points, np.uint32), dtype)
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = math.prod(shape) * dtype.itemsize
    return constant(dtype.name, shape, draw(st.binary(min_size=size, max_size=size)))


CHECKPOINTS = st.dictionaries(NAMES, tensors(), min_size=1, max_size=6)


@given(CHECKPOINTS, st.integers(1, 40))
@settings(deadline=None)
def test_whatever_is_laid_out_is_read_back(named: dict[str, Constant], slice_bytes: int) -> None:
    data = laid_out(list(named.items()), slice_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.ckpt")
        path.write_bytes(data)
        checkpoint = read_ckpt(path)
        assert list(checkpoint.tensors) == list(named)
        for name, tensor in named.items():
            found = checkpoint.tensors[name]
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert found.read_all().tobytes() == tensor.read_all().tobytes()
