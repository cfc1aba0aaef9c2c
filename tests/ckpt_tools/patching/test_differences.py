"""Differences of bits: lossless for whatever bits there are, small for near numbers, and safe from hostile bytes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.patching.differences import apply_differences, bits_of, encode_differences
from ckpt_tools.tensors.dtypes import BY_NAME

TYPES = ["bf16", "fp16", "fp32", "fp64", "int8", "int64", "bool"]


@pytest.mark.parametrize("dtype", TYPES)
@given(data=st.data())
def test_any_bits_come_back(dtype: str, data: st.DataObject) -> None:
    kind = BY_NAME[dtype]
    size = data.draw(st.integers(1, 200))
    seed, missed = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, size))
    generator = np.random.default_rng(seed)
    predicted = generator.integers(0, 256, size * kind.itemsize, np.uint8).view(f"u{kind.itemsize}")
    actual = predicted.copy()
    places = generator.choice(size, missed, replace=False)
    actual[places] = generator.integers(0, 256, missed * kind.itemsize, np.uint8).view(actual.dtype)
    encoded = encode_differences(actual, predicted, kind)
    apply_differences(encoded, predicted, kind)
    assert np.array_equal(predicted, actual)


def test_the_neighbours_of_zero_are_one_apart_across_the_sign() -> None:
    values = np.array([0.0, 1e-45, -0.0, -1e-45], np.float32)
    moved = bits_of(np.roll(values, 1))
    # All of the differences fit into the lowest of four planes.
    content = zlib.decompress(encode_differences(bits_of(values), moved, BY_NAME["fp32"])[1:])
    assert set(content[4:]) == {0}


def test_equal_bits_need_no_byte() -> None:
    bits = bits_of(np.full(100, np.nan))
    assert encode_differences(bits, bits, BY_NAME["fp64"]) == b""


HOSTILE = {
    "an unknown kind": b"\x07" + zlib.compress(b""),
    "no stream": b"\x01",
    "a broken stream": b"\x02abc",
    "a bomb": b"\x02" + zlib.compress(bytes(2**26)),
    "a sparse bomb": b"\x01" + zlib.compress(bytes(2**26)),
    "too few": b"\x02" + zlib.compress(bytes(10)),
    "half an entry": b"\x01" + zlib.compress(bytes(7)),
    "a place beyond the end": b"\x01" + zlib.compress(b"\xff\xff\xff\xff\x01\x00"),
    "more behind the stream": b"\x02" + zlib.compress(bytes(200)) + b"more",
    "a stream cut off": b"\x02" + zlib.compress(bytes(200))[:-1],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_that_are_no_encoding_are_refused(name: str) -> None:
    predicted = np.zeros(100, np.uint16)
    with pytest.raises(ValueError, match=r"."):
        apply_differences(HOSTILE[name], predicted, BY_NAME["bf16"])
    assert not predicted.any()
