"""What a patch says as JSON, and back: read strictly, since nobody vouches for the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.strict_json import parse_json
from ckpt_tools.patching.grid import Grid
from ckpt_tools.patching.model import FactorRecord, NotRestored, PatchFacts, TensorRecord, TermRecord, UsedAdapter
from ckpt_tools.tensors.dtypes import BY_NAME
from surgery.errors import CorruptInputError, Problem, UnknownFormatError

__all__ = ["KEY", "parse_facts", "write_facts"]

KEY = "pet_surgery.unmerge_patch"
"""The metadata key that holds the document."""

_VERSION = 1
_MAX_AXES = 32


def write_facts(facts: PatchFacts) -> str:
    """The document."""
    document = {
        "version": _VERSION,
        "base": {
            "file": facts.base_file,
            "fingerprint": facts.base_fingerprint,
            "metadata": dict(facts.base_metadata),
            "config": facts.base_config,
            "not_restored": {entry.name: entry.role for entry in facts.not_restored},
        },
        "merged": {"file": facts.merged_file, "fingerprint": facts.merged_fingerprint},
        "adapters": [{"file": one.file, "digest": one.digest, "tensors": dict(one.tensors)} for one in facts.adapters],
        "tensors": [_tensor_document(record) for record in facts.tensors],
    }
    return json.dumps(document, ensure_ascii=True, separators=(",", ":"))


def _tensor_document(record: TensorRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "merged": record.merged_name,
        "dtype": record.dtype.name,
        "shape": list(record.shape),
        "matrix": list(record.grid.matrix),
        "rows": record.grid.rows,
        "terms": [
            {"left": _factor_document(term.left), "right": _factor_document(term.right), "scaling": term.scaling}
            for term in record.terms
        ],
        "dora_axis": record.dora_axis,
    }


def _factor_document(factor: FactorRecord) -> dict[str, object]:
    return {"tensor": factor.digest, "shape": list(factor.shape), "transposed": factor.is_transposed}


def parse_facts(text: str, where: str) -> PatchFacts:
    """What a document says.

    Args:
        text: The document.
        where: What to call it in an error.

    Raises:
        UnknownFormatError: It is of another version.
        CorruptInputError: It is not what `write_facts` writes.
    """
    document = parse_json(text.encode("utf-8", "surrogatepass"), where)
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is int and version != _VERSION:
        raise UnknownFormatError(Problem(where, f"version {version}", f"version {_VERSION}", "Update pet-surgery"))
    top = _Reader(document, where)
    base, merged = top.reader("base"), top.reader("merged")
    tensors = tuple(_tensor(_Reader(item, f"{where}, tensors[{i}]")) for i, item in enumerate(top.list("tensors")))
    for kind, names in (
        ("base", [record.name for record in tensors]),
        ("merged model", [record.merged_name for record in tensors]),
    ):
        if len(set(names)) != len(names):
            top.refuse(f"a name of the {kind} twice", "each name once")
    adapters = tuple(
        UsedAdapter(one.text("file"), one.text("digest"), one.strings("tensors"))
        for one in (_Reader(item, f"{where}, adapters") for item in top.list("adapters"))
    )
    digests = {digest for adapter in adapters for digest in adapter.tensors}
    for term in (term for record in tensors for term in record.terms):
        if not {term.left.digest, term.right.digest} <= digests:
            top.refuse("an update by a tensor of no adapter", "tensors of the adapters that it names")
    return PatchFacts(
        tensors=tensors,
        adapters=adapters,
        merged_file=merged.text("file"),
        merged_fingerprint=merged.text("fingerprint"),
        base_file=base.text("file"),
        base_fingerprint=base.text("fingerprint"),
        base_metadata=base.strings("metadata"),
        base_config=None if base.value("config") is None else base.text("config"),
        not_restored=tuple(NotRestored(name, role) for name, role in base.strings("not_restored").items()),
    )


def _tensor(reader: _Reader) -> TensorRecord:
    name = reader.text("name")
    dtype = BY_NAME.get(reader.text("dtype"))
    if dtype is None:
        reader.refuse(f"the type {quote_name(reader.text('dtype'))}", "one of " + ", ".join(BY_NAME))
    shape, matrix, rows = reader.shape("shape"), reader.shape("matrix"), reader.value("rows")
    if len(matrix) not in (2, 3) or math.prod(matrix) != math.prod(shape) or type(rows) is not int or rows < 1:
        reader.refuse(f"the shape {list(shape)} as {list(matrix)}", "as many elements in rows")
    terms = tuple(_term(_Reader(item, f"{reader.where}, terms"), matrix) for item in reader.list("terms"))
    if terms and not dtype.is_float:
        reader.refuse(f"updates of a tensor of type {dtype}", "a floating-point type")
    axis = reader.value("dora_axis")
    if axis not in (None, 0, 1) or type(axis) is bool or (axis is not None and (len(matrix) != 2 or not terms)):
        reader.refuse(f"the axis {axis!r}", "0, 1 or null, and a matrix with an update")
    return TensorRecord(name, reader.text("merged"), dtype, shape, Grid(matrix, rows), terms, axis)


def _term(reader: _Reader, matrix: tuple[int, ...]) -> TermRecord:
    left, right = (_factor(reader.reader(side)) for side in ("left", "right"))
    *stack, rows, columns = matrix
    rank = left.factor_shape[-1]
    if left.factor_shape != (*stack, rows, rank) or right.factor_shape != (*stack, rank, columns):
        found = f"factors {list(left.factor_shape)} and {list(right.factor_shape)}"
        reader.refuse(found, f"factors of {list(matrix)}")
    scaling = reader.value("scaling")
    if type(scaling) not in (int, float) or not math.isfinite(scaling):
        reader.refuse("a scaling that is no number", "a finite number")
    return TermRecord(left, right, float(scaling))


def _factor(reader: _Reader) -> FactorRecord:
    shape, transposed = reader.shape("shape"), reader.value("transposed")
    if len(shape) < 2 or type(transposed) is not bool:
        reader.refuse(f"the shape {list(shape)}", "a matrix or a stack of them")
    return FactorRecord(reader.text("tensor"), shape, transposed)


class _Reader:
    """An object of the document, whose members are of the kinds that they are asked for as."""

    def __init__(self, document: object, where: str) -> None:
        self.where = where
        self._members: Mapping[str, Any] = document if isinstance(document, dict) else {}
        if not isinstance(document, dict):
            self.refuse("something else", "an object")

    def refuse(self, found: str, expected: str) -> NoReturn:
        raise CorruptInputError(Problem(self.where, found, expected, "Copy the patch again"))

    def value(self, key: str) -> Any:
        if key not in self._members:
            self.refuse(f"no {key}", f"a {key}")
        return self._members[key]

    def reader(self, key: str) -> _Reader:
        return _Reader(self.value(key), f"{self.where}, {key}")

    def text(self, key: str) -> str:
        value = self.value(key)
        return value if isinstance(value, str) else self.refuse(f"no text as {key}", "a text")

    def list(self, key: str) -> list[Any]:
        value = self.value(key)
        return value if isinstance(value, list) else self.refuse(f"no list as {key}", "a list")

    def strings(self, key: str) -> dict[str, str]:
        value = self.value(key)
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            self.refuse(f"something else as {key}", "an object of texts")
        return value

    def shape(self, key: str) -> tuple[int, ...]:
        sizes = self.list(key)
        if len(sizes) > _MAX_AXES or not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
            self.refuse(f"the sizes {str(sizes)[:80]}", "numbers of elements")
        return tuple(sizes)
