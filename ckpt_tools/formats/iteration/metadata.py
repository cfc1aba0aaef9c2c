"""`metadata.json` of an iteration of MindFormers' Checkpoint 2.0: parsed strictly, compared with nothing yet.

    {"state_dict_metadata":
        {NAME: {"properties": {"dtype": "Float32", "replica_id": ..., ...},
                "global_shape": [...], "axis_fragmentations": [...],
                "layout": {"device_matrix": [...], "tensor_map": [...], "interleaved_parallel": false,
                           "alias_name": [...], "rank_list": [...]},
                "chunk": [{"global_offset": [...], "local_shape": [...]}, ...]}, ...},
     "storage_data":
        {"('NAME', (0,))": [{"file_name": ..., "storage_rank": 0, "rank_group": [...]}, ...], ...}}

A key of `storage_data` is Python's `repr` of the tensor's name and the chunk's offset. What the loader of MindFormers
does not need (`replica_id`, `axis_fragmentations`, `allow_...`) is not read. A large run writes hundreds of megabytes,
most of them `rank_group`s and `rank_list`s, so objects are made compact while they are parsed.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, TypeVar

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.iteration.grid import DeviceLayout
from ckpt_tools.formats.strict_json import parse_json
from ckpt_tools.tensors.dtypes import BY_MINDSPORE_NAME, DType
from ckpt_tools.tensors.sources import Source, open_source, read_exactly
from surgery.errors import CorruptInputError, Problem

__all__ = ["ChunkKey", "Holder", "IterationMetadata", "TensorMetadata", "parse_chunk_key", "read_iteration_metadata"]

_MAX_BYTES = 2**30  # MindFormers takes a line for each number: two lists of 8,192 ranks for 2,000 tensors are 0.9 GB
_MAX_RANKS = 2**20
_MAX_KEY_CHARACTERS = 2**17
_MAX_AXES = 32  # numpy 1.x
_MAX_PROBLEMS = 20

# The names of types are written in MindSpore's spelling, or all in lower case: "Float32", "float32".
_DTYPES = {name.lower(): dtype for name, dtype in BY_MINDSPORE_NAME.items()}

_STRING = r"""'(?:[^'\\\n\r\0]|\\E)*'|"(?:[^"\\\n\r\0]|\\E)*\"""".replace(
    "E", r"""(?:['"\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"""
)
_KEY = re.compile(rf"\(({_STRING}), \(((?:[0-9]{{1,19}}(?:, [0-9]{{1,19}})*,?)?)\)\)")

ChunkKey = tuple[str, tuple[int, ...]]
"""A tensor's name and a chunk's `global_offset`."""


@dataclass(frozen=True, slots=True)
class _ChunkEntry:
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Holder:
    """A file that holds a chunk, and the rank that wrote it."""

    file: str
    rank: int


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """What `metadata.json` says of a tensor.

    Attributes:
        dtype: The element type.
        shape: The whole tensor's shape.
        chunks: `global_offset` to shape of each chunk; there is at least one.
        layout: How it is cut over ranks; None where nothing is said.
    """

    dtype: DType
    shape: tuple[int, ...]
    chunks: Mapping[tuple[int, ...], tuple[int, ...]]
    layout: DeviceLayout | None


@dataclass(frozen=True, slots=True)
class IterationMetadata:
    """A parsed `metadata.json`.

    Attributes:
        source: The file that was parsed.
        tensors: What it says of each tensor, in its order.
        holders: The files that hold each chunk, in its order.
    """

    source: Source
    tensors: Mapping[str, TensorMetadata]
    holders: Mapping[ChunkKey, tuple[Holder, ...]]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.source.path)


def read_iteration_metadata(path: Path) -> IterationMetadata:
    """Parse the file.

    Raises:
        InputMissingError: It is not there.
        CorruptInputError: It is no JSON, or something in it is not of the form above; all such places at once.
    """
    source = open_source(path)
    if source.size > _MAX_BYTES:
        raise CorruptInputError(Problem(str(path), f"{source.size:,} bytes", f"at most {_MAX_BYTES:,}"))
    document = parse_json(read_exactly(source, 0, source.size), str(path), on_object=_Compactor().compact)
    tensors = document.get("state_dict_metadata") if isinstance(document, dict) else None
    storage = document.get("storage_data") if isinstance(document, dict) else None
    if not isinstance(tensors, dict) or not isinstance(storage, dict) or not tensors:
        expected = "an object with the objects state_dict_metadata, with tensors, and storage_data"
        raise CorruptInputError(Problem(str(path), "something else", expected))
    errors: list[CorruptInputError] = []
    parsed = dict(_collect(errors, _tensor, f"{path}, tensor", tensors))
    by_key = dict(_collect(errors, _stored_chunk, f"{path}, storage_data,", storage))
    holders = dict(by_key.values())
    if len(holders) < len(by_key):
        twice = Problem(f"{path}, storage_data", "a name and an offset in two spellings", "each once")
        errors.append(CorruptInputError(twice))
    if errors:
        problems = [problem for error in errors for problem in error.problems]
        if len(problems) > _MAX_PROBLEMS:
            problems[_MAX_PROBLEMS:] = [Problem("further", f"{len(problems) - _MAX_PROBLEMS} problems of this kind")]
        raise CorruptInputError(problems)
    return IterationMetadata(source, parsed, holders)


def parse_chunk_key(text: str) -> ChunkKey | None:
    """The name and the offset that a key of `storage_data` stands for; None where it is not of that form."""
    match = _KEY.fullmatch(text) if len(text) <= _MAX_KEY_CHARACTERS else None
    if match is None:
        return None
    quoted, numbers = match[1], match[2]
    name = quoted[1:-1]
    if "\\" in name:
        try:
            name = ast.literal_eval(quoted)
        except (SyntaxError, ValueError):  # an escape beyond Unicode
            return None
    offset = tuple(int(number) for number in numbers.rstrip(",").split(", ")) if numbers else ()
    # "(5)" is a number in Python, and "(5, 6,)" is not how it writes a tuple.
    return (name, offset) if numbers.endswith(",") == (len(offset) == 1) else None


class _Compactor:
    """Makes what takes most of a document small as soon as it is parsed; what is of another form stays for errors."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._ranks: dict[tuple[int, ...], tuple[int, ...]] = {}

    def compact(self, members: dict[str, object]) -> object:
        """A chunk, a holder, or a layout whose ranks are those of other layouts; file names are shared likewise."""
        if members.keys() == {"global_offset", "local_shape"}:
            offset, shape = members["global_offset"], members["local_shape"]
            if _are_counts(offset) and _are_counts(shape):
                return _ChunkEntry(tuple(offset), tuple(shape))
        elif "file_name" in members:
            file, rank, group = members["file_name"], members.get("storage_rank"), members.get("rank_group", [])
            if isinstance(file, str) and _is_count(rank) and _are_counts(group):
                return Holder(self._files.setdefault(file, file), rank)
        elif _are_counts(ranks := members.get("rank_list")):
            members["rank_list"] = self._ranks.setdefault(tuple(ranks), tuple(ranks))
        return members


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(_is_count(item) for item in value)


_Parsed = TypeVar("_Parsed")
_Parse = Callable[[str, str, object], _Parsed]


def _collect(
    errors: list[CorruptInputError], parse: _Parse[_Parsed], where: str, members: Mapping[str, object]
) -> Iterator[tuple[str, _Parsed]]:
    """Each member parsed; the errors of those that cannot be are remembered."""
    for key, value in members.items():
        try:
            yield key, parse(f"{where} {quote_name(key)}", key, value)
        except CorruptInputError as error:  # noqa: PERF203 - all of them are told at once
            errors.append(error)


def _wrong(where: str, found: str, expected: str) -> CorruptInputError:
    return CorruptInputError(Problem(where, found, expected))


def _tensor(where: str, name: str, entry: object) -> TensorMetadata:
    if not isinstance(entry, dict):
        raise _wrong(where, "no object", "properties, global_shape, layout and chunk")
    properties = entry.get("properties")
    type_name = properties.get("dtype") if isinstance(properties, dict) else None
    dtype = _DTYPES.get(type_name.lower()) if isinstance(type_name, str) else None
    if dtype is None:
        found = f"the type {quote_name(type_name)}" if isinstance(type_name, str) else "none"
        raise _wrong(where, found, "a type of MindSpore in properties, dtype")
    shape = entry.get("global_shape")
    if not _are_counts(shape) or len(shape) > _MAX_AXES or math.prod(filter(None, shape)) >= 2**63:
        raise _wrong(where, "no such thing", f"a global_shape of at most {_MAX_AXES} axes and 2^63 elements")
    chunks = _chunks(f"{where}, chunk", entry.get("chunk"), len(shape))
    layout = entry.get("layout")
    parsed = None if layout is None else _layout(f"{where}, layout", layout, len(shape))
    return TensorMetadata(dtype, tuple(shape), chunks, parsed)


def _chunks(where: str, entries: object, axes: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    if not isinstance(entries, list) or not entries or not all(isinstance(one, _ChunkEntry) for one in entries):
        raise _wrong(where, "something else", "a list of global_offset and local_shape")
    chunks: dict[tuple[int, ...], tuple[int, ...]] = {}
    for entry in entries:
        if len(entry.shape) != axes or len(entry.offset) > _MAX_AXES:
            raise _wrong(where, f"a chunk of shape {list(entry.shape[:_MAX_AXES])}", f"{axes} axes")
        if entry.offset in chunks:
            raise _wrong(where, f"the global_offset {list(entry.offset)} twice", "each once")
        chunks[entry.offset] = entry.shape
    return chunks


def _layout(where: str, entry: object, axes: int) -> DeviceLayout:
    if not isinstance(entry, dict):
        raise _wrong(where, "no object", "device_matrix, tensor_map and rank_list")
    matrix, cuts, ranks = entry.get("device_matrix"), _tensor_map(entry.get("tensor_map")), entry.get("rank_list")
    if not _are_counts(matrix) or not 0 < len(matrix) <= _MAX_AXES or cuts is None or not isinstance(ranks, tuple):
        raise _wrong(where, "something else", "lists device_matrix, tensor_map and rank_list")
    if len(ranks) > _MAX_RANKS:
        raise _wrong(where, f"{len(ranks):,} ranks", f"at most {_MAX_RANKS:,}")
    if entry.get("interleaved_parallel") is True:
        matrix, ranks = _without_interleaving(matrix, ranks)
    if not ranks or math.prod(matrix) != len(ranks) or len(set(ranks)) != len(ranks):
        raise _wrong(where, f"{len(ranks)} ranks for the device_matrix {matrix}", "a rank for each of its places")
    used = [axis for group in cuts for axis in group]
    if len(set(used)) != len(used) or any(axis >= len(matrix) for axis in used):
        raise _wrong(where, f"device axes {used[:_MAX_AXES]}", f"each of {len(matrix)} axes once at most")
    if not used and len(cuts) != axes:
        cuts = ((),) * axes  # a scalar may have the map of one axis that is not cut
    if len(cuts) != axes:
        raise _wrong(where, f"a tensor_map of {len(cuts)} axes", f"{axes}, as in global_shape")
    return DeviceLayout(tuple(matrix), cuts, ranks)


def _without_interleaving(matrix: list[int], ranks: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
    """A layout whose last device axis stands for no devices: MindSpore counts it as 1 where it cuts parameters.

    `Layout` numbers places, of which each device then has several: the rank list is of places where nobody gave one.
    """
    if len(ranks) == math.prod(matrix) and ranks == tuple(range(len(ranks))) and matrix[-1]:
        ranks = ranks[: len(ranks) // matrix[-1]]
    return [*matrix[:-1], 1], ranks


def _stored_chunk(where: str, text: str, holders: object) -> tuple[ChunkKey, tuple[Holder, ...]]:
    key = parse_chunk_key(text)
    if key is None:
        raise _wrong(where, "a key of another form", "a name and an offset, such as \"('w', (0,))\"")
    if not isinstance(holders, list) or not holders or not all(isinstance(one, Holder) for one in holders):
        raise _wrong(where, "something else", "a list of file_name, storage_rank and rank_group")
    return key, tuple(dict.fromkeys(holders))


def _tensor_map(value: object) -> tuple[tuple[int, ...], ...] | None:
    """For each axis the device axes that cut it; -1, which stands for none, is left out."""
    if not isinstance(value, list):
        return None
    groups = [item if isinstance(item, list) else [item] for item in value]
    if not all(type(axis) is int and axis >= -1 for group in groups for axis in group):
        return None
    return tuple(tuple(axis for axis in group if axis >= 0) for group in groups)
