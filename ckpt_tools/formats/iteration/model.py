"""What an iteration of MindFormers' Checkpoint 2.0 is: whole tensors, and the chunks of files that they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tools.formats.iteration.grid import Edges
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import LazyTensor, Region
from ckpt_tools.tensors.sources import Source

__all__ = ["Chunk", "GlobalTensor", "Iteration"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A rectangle of a tensor, as a file holds it.

    Attributes:
        region: Its place in the whole tensor.
        tensor: Its bytes.
        file: The name of the file.
        rank: The rank that wrote the file.
    """

    region: Region
    tensor: LazyTensor
    file: str
    rank: int


@dataclass(frozen=True, slots=True)
class GlobalTensor:
    """A whole tensor.

    Attributes:
        name: Its name.
        dtype: The element type.
        shape: The whole shape.
        edges: For each axis where it is cut, from 0 to its length.
        chunks: The cells of that grid in C order, each once: of replicas the one that the lowest rank wrote.
        replicas: The other copies of cells, by rank.
        kind: `MODEL` or `OPTIMIZER`, as the names of its files say; empty where they say nothing.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    edges: Edges
    chunks: tuple[Chunk, ...]
    replicas: tuple[Chunk, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Iteration:
    """An iteration whose headers were read and checked; no tensor's content was.

    Attributes:
        path: Its folder.
        number: Its number, by the folder's name; None where that says none.
        tensors: Name to tensor, in the order of `metadata.json`.
        common: What `common.json` says: counters of the training.
        files: The names of the weights files, in natural order.
        prefix: What the user had put before the files' names; None for nothing.
        unlisted: Tensors of the files that `metadata.json` does not name, so that their place in a whole is unknown:
            each copy as the chunk of all of itself.
        sources: Every file that was read.
        warnings: What is odd but legal, a sentence each.
    """

    path: Path
    number: int | None
    tensors: Mapping[str, GlobalTensor]
    common: Mapping[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    prefix: str | None = None
    unlisted: Mapping[str, tuple[Chunk, ...]] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all whole tensors' contents."""
        return sum(chunk.tensor.nbytes for tensor in self.tensors.values() for chunk in tensor.chunks)

    @property
    def ranks(self) -> int:
        """How many ranks there are, by the last one that wrote something."""
        listed = (chunk for tensor in self.tensors.values() for chunk in (*tensor.chunks, *tensor.replicas))
        unlisted = (chunk for chunks in self.unlisted.values() for chunk in chunks)
        return 1 + max((chunk.rank for chunk in itertools.chain(listed, unlisted)), default=0)
