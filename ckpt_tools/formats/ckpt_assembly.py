"""Values of a `.ckpt` joined to tensors: slices put together, and everything proven to fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ckpt_tools.formats.ckpt_layout import SLICE_BYTES
from ckpt_tools.formats.ckpt_values import Value, ValueProblems, quote_name
from ckpt_tools.tensors.dtypes import BY_MINDSPORE_NAME, DType
from ckpt_tools.tensors.lazy import ByteRun, Stored
from ckpt_tools.tensors.sources import Source, read_exactly
from surgery.errors import CorruptInputError, Problem, UnknownFormatError

__all__ = ["TensorAssembly"]

_CHUNK_BYTES = 2**20
_MAX_TENSOR_BYTES = 2**63 - 1
_MAX_WARNINGS = 20

# mindspore.save_checkpoint of 2.9.0 writes these types, and mindspore.load_checkpoint fails on them with a KeyError.
_NOT_LOADED_BY_MINDSPORE = frozenset({"Complex64", "Complex128", "Float8E4M3FN", "Float8E5M2", "HiFloat8"})


@dataclass(slots=True)
class _Open:
    """A tensor whose slices are being collected."""

    first: Value
    dtype: DType | None
    runs: list[ByteRun]
    length: int = 0


class TensorAssembly:
    """Joins the values of a file to tensors, in one pass."""

    def __init__(self, source: Source, problems: ValueProblems) -> None:
        self.tensors: dict[str, Stored] = {}
        self.warnings: list[str] = []
        self._source = source
        self._problems = problems
        self._seen: set[str] = set()
        self._open: _Open | None = None

    def add(self, value: Value) -> None:
        """Take the next value of the file."""
        if self._open is None or self._open.first.name != value.name:
            self.close()
            self._begin(value)
        elif self._open.dtype is not None and self._continues(self._open, value):
            self._append(self._open, value)

    def close(self) -> None:
        """The tensor at hand has all its slices."""
        tensor, self._open = self._open, None
        if tensor is None or tensor.dtype is None:
            return
        shape = self._shape(tensor, tensor.dtype)
        if shape is not None:
            self.tensors[tensor.first.name] = Stored(tensor.dtype, shape, tuple(tensor.runs))

    def _begin(self, value: Value) -> None:
        # A tensor without dtype is one that was refused: its further slices are passed over.
        self._open = _Open(value, None, [])
        if value.name in self._seen:
            found = "a value of this name again, behind other tensors"
            expected = "each name once, the slices of a tensor one behind the other"
            self._corrupt(value, found, expected, "Two files were joined, or the file was not written by MindSpore")
            return
        self._seen.add(value.name)
        dtype = BY_MINDSPORE_NAME.get(value.type_name)
        if dtype is None:
            problem = Problem(
                self._where(value),
                f"element type {quote_name(value.type_name)}",
                "one of " + ", ".join(BY_MINDSPORE_NAME),
                "Leave the tensor out, or cast it before saving",
            )
            self._problems.add(UnknownFormatError(problem))
            return
        if math.prod(dim for dim in value.dims if dim) * dtype.itemsize > _MAX_TENSOR_BYTES:
            self._corrupt(value, f"dimensions {list(value.dims)}", "a tensor of less than 2^63 bytes")
            return
        self._open.dtype = dtype
        self._append(self._open, value)
        self._warn(value)

    def _continues(self, tensor: _Open, value: Value) -> bool:
        first = tensor.first
        if (value.type_name, value.dims) != (first.type_name, first.dims):
            found = f"a second value of type {quote_name(value.type_name)} and dimensions {list(value.dims)}"
            expected = f"a slice with {first.type_name} and {list(first.dims)} as in the first value of this name"
        elif _is_complete(tensor) and not _may_trail(value):
            found, expected = "a second value of this name, behind one that is complete", "each name once"
        else:
            return True
        self._corrupt(value, found, expected, "The file was not written by MindSpore: save it again with unique names")
        tensor.dtype = None
        return False

    def _append(self, tensor: _Open, value: Value) -> None:
        length = value.stop - value.start
        if length:
            tensor.runs.append(ByteRun(self._source, value.start, length))
            tensor.length += length

    def _shape(self, tensor: _Open, dtype: DType) -> tuple[int, ...] | None:
        """The tensor's shape, or None (and a problem) where the content does not fit."""
        value, dims = tensor.first, tensor.first.dims
        if dtype.name == "str":
            return self._text_shape(tensor)
        if dims == (0,) and tensor.length == dtype.itemsize:
            return ()  # how older versions of MindSpore state a scalar; 2.9.0 still reads it so
        needed = math.prod(dims) * dtype.itemsize
        if tensor.length == needed:
            return dims
        found = f"{tensor.length:,} bytes of content, which is too {'short' if tensor.length < needed else 'long'}"
        self._corrupt(value, found, f"{needed:,} bytes for {value.type_name} and dimensions {list(dims)}")
        return None

    def _text_shape(self, tensor: _Open) -> tuple[int, ...] | None:
        count, odd = divmod(tensor.length, 4)
        if odd or not 0 < tensor.length <= SLICE_BYTES or tensor.first.dims not in ((0,), (), (count,)):
            found = f"a text of {tensor.length:,} bytes with dimensions {list(tensor.first.dims)}"
            self._corrupt(tensor.first, found, "4 bytes a code point, 4 bytes to 512 MiB, and dimensions [0]")
            return None
        (run,) = tensor.runs
        for start in range(0, run.length, _CHUNK_BYTES):
            chunk = read_exactly(run.source, run.offset + start, min(_CHUNK_BYTES, run.length - start))
            largest = int(np.frombuffer(chunk, "<u4").max())
            if largest > 0x10FFFF:
                self._corrupt(tensor.first, f"a text with code point {largest:#x}", "none above 0x10ffff")
                return None
        return (count,)

    def _warn(self, value: Value) -> None:
        if len(self.warnings) > _MAX_WARNINGS:
            return
        if len(self.warnings) == _MAX_WARNINGS:
            self.warnings.append(f"{self._source.path}: there are more such warnings.")
            return
        if not value.name.isprintable():
            self.warnings.append(f"{self._where(value)}: its name holds characters that cannot be printed.")
        elif value.type_name in _NOT_LOADED_BY_MINDSPORE:
            reason = "which mindspore.save_checkpoint writes and mindspore.load_checkpoint 2.9.0 cannot read"
            self.warnings.append(f"{self._where(value)}: its type is {value.type_name}, {reason}.")

    def _corrupt(self, value: Value, found: str, expected: str, remedy: str = "") -> None:
        remedy = remedy or "The file is damaged: copy it again from where it was saved"
        self._problems.add(CorruptInputError(Problem(self._where(value), found, expected, remedy)))

    def _where(self, value: Value) -> str:
        return f"{self._source.path}, byte {value.offset:,}, tensor {quote_name(value.name)}"


def _may_trail(value: Value) -> bool:
    """Whether a value is one of the empty slices that numpy.array_split, with which MindSpore cuts arrays, leaves."""
    return value.start == value.stop and bool(value.dims) and 0 not in value.dims


def _is_complete(tensor: _Open) -> bool:
    assert tensor.dtype is not None
    dims, itemsize = tensor.first.dims, tensor.dtype.itemsize
    if tensor.dtype.name == "str":
        return True
    return tensor.length == math.prod(dims) * itemsize or (dims == (0,) and tensor.length == itemsize)
