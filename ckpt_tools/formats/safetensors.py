"""safetensors: a u64 length, a JSON header, the tensors' bytes. Read strictly.

    file   = u64le n   header (n bytes)   data
    header = {"__metadata__": {str: str}, name: {"dtype": str, "shape": [int], "data_offsets": [start, stop]}, ...}

Offsets count from the beginning of the data and cover it exactly. MindSpore stores its 4-bit integers, one a byte, as
I8 and marks them in the metadata: `{name: "Int4"}`; any other metadata key that is a tensor's name breaks its reader.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.formats.safetensors_layout import (
    INT4,
    INT4_MARK,
    INT4_STORED_AS,
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    METADATA_KEY,
    layout_safetensors,
)
from ckpt_tools.formats.strict_json import parse_json
from ckpt_tools.tensors.dtypes import BY_SAFETENSORS_NAME, DType
from ckpt_tools.tensors.lazy import ByteRun, Stored
from ckpt_tools.tensors.sources import Source, open_source, read_exactly
from surgery.errors import CorruptInputError, Problem, UnknownFormatError

__all__ = ["LENGTH_BYTES", "MAX_HEADER_BYTES", "HeaderTensors", "layout_safetensors", "read_safetensors"]

_DAMAGED = (
    "The file is damaged, or not of a safetensors library: copy it again from where it was saved, or save it again"
)
_RESAVE = "Save it again with strings alone: json.dumps makes one of anything else"

# The largest number of axes that numpy 1 can hold, and of bytes that an offset can count.
_MAX_AXES = 32
_MAX_BYTES = 2**63 - 1
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the header says of a tensor; `start` and `stop` count from the beginning of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor's type, shape, and place behind the header."""

    dtype: DType
    shape: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class _Header:
    """A header that keeps the rules of the format.

    Attributes:
        tensors: Name to type, shape and place, in the order of the bytes.
        metadata: The strings beside them.
        data_bytes: Bytes of all tensors.
        hidden: Names that are keys of the metadata too.
        is_in_order: Whether the header has the order of the bytes.
    """

    tensors: Mapping[str, _Place]
    metadata: Mapping[str, str]
    data_bytes: int
    hidden: tuple[str, ...]
    is_in_order: bool


class HeaderTensors(Mapping[str, Stored]):
    """The tensors of one file: made when they are asked for, of a header that files of other ranks may share.

    Attributes:
        places: Name to type, shape and place in the data.
    """

    def __init__(self, source: Source, data_start: int, places: Mapping[str, _Place]) -> None:
        self._source = source
        self._data_start = data_start
        self.places = places

    def __getitem__(self, name: str) -> Stored:
        place = self.places[name]
        return Stored(place.dtype, place.shape, (ByteRun(self._source, self._data_start + place.start, place.length),))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places


def read_safetensors(path: str | os.PathLike[str]) -> Checkpoint:
    """The tensors of a file, in the order of their bytes; only the header is read.

    Raises:
        InputMissingError: The file is not there.
        CorruptInputError: It breaks a rule of the format.
        UnknownFormatError: A tensor's type is not known to this project.
    """
    source = open_source(path)
    where = f"{path}, header"
    text = bytes(_read_header(source, where))
    header = _known_headers.get(text)
    if header is None:
        header = _known_headers.keep(text, _parse_header(text, where))
    data_start = LENGTH_BYTES + len(text)
    _check_length(header.data_bytes, source.size - data_start, where)
    warnings = [
        f"{path}: the metadata key {quote_name(name)} is also a tensor's name; MindSpore cannot read such a file, and "
        "the key is left out of what is written"
        for name in header.hidden
    ]
    if not header.is_in_order:
        warnings.append(f"{path}: its header is not in the order of its data; MindSpore cannot read such a file")
    return Checkpoint(
        path=Path(path),
        format="safetensors",
        is_folder=False,
        tensors=HeaderTensors(source, data_start, header.tensors),
        metadata=header.metadata,
        sources=(source,),
        warnings=tuple(warnings),
    )


class _KnownHeaders:
    """The last few headers that were parsed: the files of ranks often have the same one, byte for byte."""

    _MOST = 8
    _LARGEST_BYTES = 4 * 2**20

    def __init__(self) -> None:
        self._headers: dict[bytes, _Header] = {}

    def get(self, text: bytes) -> _Header | None:
        return self._headers.get(text)

    def keep(self, text: bytes, header: _Header) -> _Header:
        if len(text) <= self._LARGEST_BYTES:
            while len(self._headers) >= self._MOST:
                self._headers.pop(next(iter(self._headers)), None)
            self._headers[text] = header
        return header


_known_headers = _KnownHeaders()


def _parse_header(text: bytes, where: str) -> _Header:
    document = parse_json(text, where, on_object=_compact)
    if not isinstance(document, dict):
        raise CorruptInputError(
            Problem(where, "no object of tensors", "a JSON object that maps names to tensors", _DAMAGED)
        )
    metadata = _check_metadata(document.pop(METADATA_KEY, {}), where)
    entries = _check_entries(document, where)
    in_order = sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop))
    data_bytes = _check_cover(in_order, where)
    kept, hidden = dict(metadata), []
    places: dict[str, _Place] = {}
    for name, entry in in_order:
        dtype = BY_SAFETENSORS_NAME[entry.dtype]
        if name in metadata:
            if metadata[name] == INT4_MARK and entry.dtype == INT4_STORED_AS:
                dtype = INT4
                del kept[name]
            else:
                hidden.append(name)
        places[name] = _Place(dtype, entry.shape, entry.start, entry.stop - entry.start)
    return _Header(places, kept, data_bytes, tuple(hidden), list(places) == list(entries))


def _read_header(source: Source, where: str) -> bytearray:
    room = source.size - LENGTH_BYTES
    if room < 0:
        raise CorruptInputError(
            Problem(where, f"a file of {source.size} bytes", "at least 8 bytes of header length", _DAMAGED)
        )
    (length,) = struct.unpack("<Q", read_exactly(source, 0, LENGTH_BYTES))
    if length > MAX_HEADER_BYTES:
        raise CorruptInputError(Problem(where, f"a length of {length} bytes", f"at most {MAX_HEADER_BYTES}", _DAMAGED))
    if length > room:
        raise CorruptInputError(
            Problem(where, f"a file with {room} bytes behind the length", f"{length} bytes", "Copy the file again")
        )
    header = read_exactly(source, LENGTH_BYTES, length)
    if not header.startswith(b"{"):
        raise CorruptInputError(Problem(where, f"{bytes(header[:1])!r} at its beginning", "'{'", _DAMAGED))
    return header


def _compact(members: dict[str, object]) -> object:
    """A tensor's description as an `_Entry`, as soon as it is parsed: dicts of a large header would fill the memory."""
    if members.keys() != {"dtype", "shape", "data_offsets"}:
        return members
    dtype, shape, offsets = members["dtype"], members["shape"], members["data_offsets"]
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        return members
    return _Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**64 for item in value)


def _check_metadata(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptInputError(Problem(f"{where}, {METADATA_KEY}", "something else", "an object of strings", _RESAVE))
    place = f"{where}, {METADATA_KEY}"
    wrong = [Problem(place, f"{quote_name(key)} with a value that is no string", "strings", _RESAVE)
             for key, text in value.items() if not isinstance(text, str)]  # fmt: skip
    _raise_if_any(wrong)
    return value


def _check_entries(document: Mapping[str, object], where: str) -> dict[str, _Entry]:
    """The document's entries, each sound by itself."""
    entries: dict[str, _Entry] = {}
    problems: list[Problem] = []
    unknown: dict[str, list[str]] = {}
    for name, entry in document.items():
        if not isinstance(entry, _Entry):
            problems.append(
                Problem(
                    f"{where}, tensor {quote_name(name)}",
                    "something else",
                    "exactly a dtype, a shape and two data_offsets",
                    _DAMAGED,
                )
            )
        elif entry.dtype not in BY_SAFETENSORS_NAME:
            unknown.setdefault(entry.dtype, []).append(name)
        else:
            problems += _check_size(name, entry, where)
            entries[name] = entry
    _raise_if_any(problems)
    if unknown:
        raise UnknownFormatError(
            Problem(
                f"{where}, {len(names)} tensors such as {quote_name(names[0])}",
                f"the type {quote_name(dtype)}",
                "one of " + ", ".join(BY_SAFETENSORS_NAME),
                "Convert the file to one of these types first",
            )
            for dtype, names in unknown.items()
        )
    return entries


def _check_size(name: str, entry: _Entry, where: str) -> Iterable[Problem]:
    itemsize = BY_SAFETENSORS_NAME[entry.dtype].itemsize
    place = f"{where}, tensor {quote_name(name)}"
    if len(entry.shape) > _MAX_AXES:
        yield Problem(place, f"{len(entry.shape)} axes", f"at most {_MAX_AXES}", _DAMAGED)
    elif math.prod(size for size in entry.shape if size) * itemsize > _MAX_BYTES:
        yield Problem(place, f"the shape {list(entry.shape)}", "fewer than 2^63 bytes", _DAMAGED)
    elif math.prod(entry.shape) * itemsize != entry.stop - entry.start:
        yield Problem(
            place,
            f"data_offsets [{entry.start}, {entry.stop}], which are {entry.stop - entry.start}",
            f"{math.prod(entry.shape) * itemsize} bytes for {entry.dtype} {list(entry.shape)}",
            _DAMAGED,
        )


def _check_cover(in_order: Sequence[tuple[str, _Entry]], where: str) -> int:
    """The bytes that the tensors cover without a gap."""
    covered = 0
    for name, entry in in_order:
        if entry.start != covered:
            kind = "a hole" if entry.start > covered else "an overlap"
            raise CorruptInputError(
                Problem(
                    f"{where}, tensor {quote_name(name)}",
                    f"{kind}: its data begins at {entry.start}",
                    f"it at {covered}",
                    _DAMAGED,
                )
            )
        covered = entry.stop
    return covered


def _check_length(covered: int, data_bytes: int, where: str) -> None:
    if covered != data_bytes:
        kind = "cut off" if covered > data_bytes else "with trailing bytes"
        raise CorruptInputError(
            Problem(where, f"a file {kind}, with {data_bytes}", f"{covered} bytes of data", "Copy the file again")
        )


def _raise_if_any(problems: Sequence[Problem]) -> None:
    """All problems at once, but not ten thousand: what is wrong with one tensor is often wrong with all."""
    if len(problems) > _MAX_PROBLEMS:
        rest = Problem("further", f"{len(problems) - _MAX_PROBLEMS} problems of this kind")
        raise CorruptInputError([*problems[:_MAX_PROBLEMS], rest])
    if problems:
        raise CorruptInputError(problems)
