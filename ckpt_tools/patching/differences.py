"""What a prediction missed, as bytes: the differences of bits, compressed.

Floating-point numbers are counted in their order, from -NaN over -Inf, the negative and the positive numbers to NaN,
so a number and its neighbour differ by 1. A difference is taken modulo 2^k of the k bits of an element, which loses
nothing, whatever the bits are, and is written as an unsigned number: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...

An encoded chunk is empty where nothing was missed. Else it is a byte, 1 or 2, and a zlib stream of:

    1   for each element that was missed, in order: how many lie between it and the one before, a u32; then of each the
        difference. At most an eighth of the elements.
    2   the difference of every element.

Numbers are little-endian, and of each list first the lowest bytes of all, then the next ones, and so on.
"""

from __future__ import annotations

import zlib

import numpy as np

from ckpt_tools.tensors.dtypes import DType

__all__ = ["apply_differences", "bits_of", "encode_differences"]

_SPARSE, _DENSE = 1, 2
# Of each: sparse lists are short, and dense ones come of what hardly compresses.
_LEVELS = {_SPARSE: 6, _DENSE: 1}
_MOST_SPARSE = 8
_GAP = np.dtype("<u4")


def bits_of(values: np.ndarray) -> np.ndarray:
    """The bits of a C-contiguous array's elements as flat unsigned integers, without a copy."""
    size = values.dtype.itemsize
    return values.reshape(-1).view(f"<u{size}" if size in (1, 2, 4, 8) else "u1")


def encode_differences(actual: np.ndarray, predicted: np.ndarray, dtype: DType) -> bytes:
    """What turns the predicted into the actual elements.

    Args:
        actual: Bits, as of `bits_of`.
        predicted: Bits, as many.
        dtype: The elements' type.
    """
    missed = np.flatnonzero(actual != predicted)
    if not missed.size:
        return b""
    if missed.size > actual.size // _MOST_SPARSE:
        return _packed(_DENSE, _planes(_differences(actual, predicted, dtype)))
    gaps = (np.diff(missed, prepend=-1) - 1).astype(_GAP)
    return _packed(_SPARSE, _planes(gaps), _planes(_differences(actual[missed], predicted[missed], dtype)))


def apply_differences(encoded: bytes | bytearray, predicted: np.ndarray, dtype: DType) -> None:
    """Turn predicted elements into the actual ones, in place.

    Args:
        encoded: As of `encode_differences`.
        predicted: Bits, as of `bits_of`.
        dtype: The elements' type.

    Raises:
        ValueError: It is no encoding of differences for so many elements; nothing that is larger is ever inflated.
    """
    if not encoded:
        return
    size = predicted.dtype.itemsize
    if encoded[0] == _DENSE:
        content = _inflated(encoded, predicted.size * size)
        if len(content) != predicted.size * size:
            raise ValueError(f"{len(content)} bytes of differences, where {predicted.size * size} are expected")
        predicted[...] = _moved(predicted, _from_planes(content, predicted.dtype), dtype)
        return
    if encoded[0] != _SPARSE:
        raise ValueError(f"an encoding of the unknown kind {encoded[0]}")
    entry = _GAP.itemsize + size
    content = _inflated(encoded, predicted.size // _MOST_SPARSE * entry)
    if not content or len(content) % entry:
        raise ValueError(f"{len(content)} bytes of differences, which are no number of entries")
    count = len(content) // entry
    gaps = _from_planes(content[: count * _GAP.itemsize], _GAP)
    missed = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if missed[-1] >= predicted.size:
        raise ValueError("a difference beyond the last element")
    values = _from_planes(content[count * _GAP.itemsize :], predicted.dtype)
    predicted[missed] = _moved(predicted[missed], values, dtype)


def _differences(actual: np.ndarray, predicted: np.ndarray, dtype: DType) -> np.ndarray:
    difference = _ordered(actual, dtype) - _ordered(predicted, dtype)
    return (difference << 1) ^ _sign(difference)


def _moved(predicted: np.ndarray, differences: np.ndarray, dtype: DType) -> np.ndarray:
    one = differences.dtype.type(1)
    difference = (differences >> one) ^ (~(differences & one) + one)
    places = _ordered(predicted, dtype) + difference
    return places ^ (_sign(~places) | _top(places)) if dtype.is_float else places


def _ordered(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """Bits as their number in the order of the values."""
    return bits ^ (_sign(bits) | _top(bits)) if dtype.is_float else bits


def _sign(bits: np.ndarray) -> np.ndarray:
    """All bits set where the highest is, else none."""
    width = 8 * bits.dtype.itemsize
    return (bits.view(f"<i{bits.dtype.itemsize}") >> (width - 1)).view(bits.dtype)


def _top(bits: np.ndarray) -> np.unsignedinteger:
    return bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))


def _planes(numbers: np.ndarray) -> bytes:
    return np.ascontiguousarray(numbers.view("u1").reshape(-1, numbers.dtype.itemsize).T).tobytes()


def _from_planes(content: bytes, dtype: np.dtype) -> np.ndarray:
    planes = np.frombuffer(content, "u1").reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


def _packed(kind: int, *parts: bytes) -> bytes:
    return bytes([kind]) + zlib.compress(b"".join(parts), _LEVELS[kind])


def _inflated(encoded: bytes | bytearray, most: int) -> bytes:
    """What the stream behind the first byte holds, if that is not more than `most`."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(memoryview(encoded)[1:], most + 1)  # of 0 it would take no limit
    except zlib.error as error:
        raise ValueError(f"a broken zlib stream ({error})") from error
    if len(content) > most:
        raise ValueError(f"a stream of more than {most} bytes")
    if not inflater.eof or inflater.unused_data:
        raise ValueError("a zlib stream that is cut off, or more behind it")
    return content
