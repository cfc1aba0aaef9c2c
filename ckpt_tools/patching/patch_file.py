"""The file of a patch: safetensors, with what it says in the metadata, and the differences as bytes.

bits/NAME       the encoded chunks of a tensor of the base, one behind the other
factors/NAME    what DoRA multiplied each output feature of the tensor with, fp32 or fp64
lengths         bytes of every encoded chunk, of all tensors in their order, u32
digests         BLAKE3 of what every chunk is in the base, (chunks, 32)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ckpt_tools.formats.recognise import read_file
from ckpt_tools.formats.safetensors import read_safetensors
from ckpt_tools.patching.document import KEY, parse_facts
from ckpt_tools.patching.model import PatchFacts, TensorRecord
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Stored
from ckpt_tools.tensors.sources import Source
from surgery.errors import CorruptInputError, Problem, UnknownFormatError

__all__ = ["BITS", "DIGESTS", "DIGEST_BYTES", "FACTORS", "LENGTHS", "ChunkTable", "Patch", "is_patch", "read_patch"]

BITS, FACTORS, LENGTHS, DIGESTS = "bits/", "factors/", "lengths", "digests"
DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The chunks of one tensor.

    Attributes:
        source: The patch.
        offsets: Where in it each chunk begins, and the last one ends.
        digests: BLAKE3 of what each chunk is in the base, `(chunks, 32)`.
    """

    source: Source
    offsets: np.ndarray
    digests: np.ndarray

    def place(self, chunk: int) -> ByteRun:
        """Where an encoded chunk lies."""
        start, stop = (int(offset) for offset in self.offsets[chunk : chunk + 2])
        return ByteRun(self.source, start, stop - start)

    def __repr__(self) -> str:
        # A plan's digest is made of it. What is at these offsets is told by the source's identity.
        return f"ChunkTable({self.source}, {self.offsets[:1]}, {len(self.digests)})"


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch whose header and tables were read.

    Attributes:
        source: Its file.
        facts: What it says.
        tables: The chunks of each tensor, by its name in the base.
        factors: DoRA's factors, by the same.
    """

    source: Source
    facts: PatchFacts
    tables: Mapping[str, ChunkTable]
    factors: Mapping[str, np.ndarray]


def is_patch(path: str | os.PathLike[str]) -> bool:
    """Whether a file says of itself that it is a patch."""
    try:
        return KEY in read_safetensors(path).metadata
    except (CorruptInputError, OSError):
        return False


def read_patch(path: str | os.PathLike[str]) -> Patch:
    """Read a patch's header and tables.

    Raises:
        InputMissingError: It is not there.
        UnknownFormatError: It is no patch, or one of another version.
        CorruptInputError: It breaks its format.
    """
    file = read_file(path)
    if KEY not in file.metadata:
        found = f"a {file.format} file without {KEY} in its metadata"
        raise UnknownFormatError(Problem(str(path), found, "a patch that pet-merge --unmerge-patch wrote"))
    facts = parse_facts(file.metadata[KEY], f"{path}, {KEY}")
    (source,) = file.sources
    chunks = sum(record.grid.chunks for record in facts.tensors)
    lengths = _table(file.tensors, LENGTHS, BY_NAME["uint32"], (chunks,), path).read_all()
    digests = _table(file.tensors, DIGESTS, BY_NAME["uint8"], (chunks, DIGEST_BYTES), path).read_all()
    tables, factors, first = {}, {}, 0
    for record in facts.tensors:
        last = first + record.grid.chunks
        ends = np.cumsum(lengths[first:last], dtype=np.int64)
        nbytes = int(ends[-1]) if len(ends) else 0
        name = BITS + record.name
        stored = _table(file.tensors, name, BY_NAME["uint8"], (nbytes,), path)
        offsets = np.concatenate([[0], ends]) + stored.runs[0].offset
        tables[record.name] = ChunkTable(source, offsets, digests[first:last])
        if record.dora_axis is not None:
            factors[record.name] = _factor(file.tensors, record, path)
        first = last
    return Patch(source, facts, tables, factors)


def _factor(tensors: Mapping[str, LazyTensor], record: TensorRecord, path: str | os.PathLike[str]) -> np.ndarray:
    assert record.dora_axis is not None
    dtype = BY_NAME["fp64" if record.dtype.name == "fp64" else "fp32"]
    return _table(tensors, FACTORS + record.name, dtype, (record.grid.matrix[record.dora_axis],), path).read_all()


def _table(
    tensors: Mapping[str, LazyTensor], name: str, dtype: DType, shape: tuple[int, ...], path: str | os.PathLike[str]
) -> Stored:
    tensor = tensors.get(name)
    if not isinstance(tensor, Stored) or tensor.dtype != dtype or tensor.shape != shape:
        found = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        where = f"{path}, tensor {name}"
        raise CorruptInputError(Problem(where, found, f"{dtype} {list(shape)}", "Copy the patch again"))
    return tensor
