"""Random lazy tensors, with the arrays that they stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from ckpt_tools.tensors.assembled import concatenated
from ckpt_tools.tensors.dtypes import BY_NAME, DType, dtype_of
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Region, Stored, region_shape
from ckpt_tools.tensors.sources import open_source
from ckpt_tools.tensors.views import Cast, Constant, Sliced, Transposed, reshape

Case = tuple[LazyTensor, np.ndarray]

DTYPES = ("bool", "int8", "int64", "fp16", "bf16", "fp32", "fp64")


def stored(path: Path, array: np.ndarray, cuts: tuple[int, ...] = ()) -> Stored:
    """An array in a file of its own, in runs that end at these bytes, each behind 3 bytes that are no content."""
    data = array.tobytes()
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    content, places = b"", []
    for start, stop in itertools.pairwise(edges):
        content += b"\xee" * 3
        places.append((len(content), stop - start))
        content += data[start:stop]
    path.write_bytes(content + b"\xee" * 3)
    source = open_source(path)
    return Stored(dtype_of(array), array.shape, tuple(ByteRun(source, offset, length) for offset, length in places))


def sliced(array: np.ndarray, region: Region) -> np.ndarray:
    return array[tuple(slice(start, stop) for start, stop in region)]


def shapes(max_axes: int = 4, max_size: int = 5, min_size: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(min_size, max_size), max_size=max_axes).map(tuple)


@st.composite
def regions(draw: st.DrawFn, shape: tuple[int, ...]) -> Region:
    """A rectangle; whole axes and empty ones come often."""
    region = []
    for size in shape:
        start = draw(st.just(0) | st.integers(0, size))
        region.append((start, draw(st.just(size) | st.integers(start, size))))
    return tuple(region)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).integers(-100, 100, shape)
    return np.asarray(values).astype(dtype.numpy)


@st.composite
def cases(draw: st.DrawFn, new_path: Callable[[], Path], shape: tuple[int, ...], dtype: DType, depth: int) -> Case:
    """A tensor of this shape and type, made of others to a depth."""
    kinds = ["constant", "stored", "stored"]
    if depth > 0:
        kinds += ["sliced", "reshaped"] + (["concatenated"] if shape else [])
        kinds += ["transposed"] if len(shape) >= 2 else []
        kinds += ["cast"] if dtype.is_float else []
    kind = draw(st.sampled_from(kinds))
    if kind in ("constant", "stored"):
        array = draw(arrays(shape, dtype))
        cuts = tuple(draw(st.lists(st.integers(0, 10_000), max_size=3)))
        return (stored(new_path(), array, cuts) if kind == "stored" else Constant(array, dtype)), array

    def inner(shape: tuple[int, ...], dtype: DType = dtype) -> Case:
        return draw(cases(new_path, shape, dtype, depth - 1))

    if kind == "cast":
        source, array = inner(shape, BY_NAME[draw(st.sampled_from(["fp16", "bf16", "fp32", "fp64"]))])
        return Cast(source, dtype), array.astype(dtype.numpy)
    if kind == "transposed":
        source, array = inner((*shape[:-2], shape[-1], shape[-2]))
        return Transposed(source), array.swapaxes(-1, -2)
    if kind == "sliced":
        before = [draw(st.integers(0, 2)) for _ in shape]
        behind = [draw(st.integers(0, 2)) for _ in shape]
        source, array = inner(tuple(a + size + b for a, size, b in zip(before, shape, behind, strict=True)))
        region = tuple((a, a + size) for a, size in zip(before, shape, strict=True))
        assert region_shape(region) == shape
        return Sliced(source, region), sliced(array, region)
    if kind == "reshaped":
        source, array = inner(draw(st.sampled_from(_other_shapes(shape))))
        return reshape(source, shape), array.reshape(shape)
    axis = draw(st.integers(0, len(shape) - 1))
    cut = draw(st.integers(0, shape[axis]))
    parts = [inner((*shape[:axis], size, *shape[axis + 1 :])) for size in (cut, shape[axis] - cut)]
    tensor = concatenated(tuple(part for part, _ in parts), axis)
    return tensor, np.concatenate([array for _, array in parts], axis)


def _other_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    size = math.prod(shape)
    others = [(size,), (1, size), (size, 1), (*shape, 1)]
    if len(shape) > 2:
        others += [(shape[0], math.prod(shape[1:])), (shape[0] * shape[1], *shape[2:])]
    return others + ([()] if size == 1 else [])
