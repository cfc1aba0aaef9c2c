"""What every format reads into and lays out from: the checkpoint as names and lazy tensors, the file as segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.sources import Source

__all__ = ["Checkpoint", "FileLayout", "NamedTensor", "Payload"]

NamedTensor = tuple[str, LazyTensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose headers were read and checked; no tensor's content was.

    Attributes:
        path: What the user gave.
        format: `ckpt` or `safetensors`: the format of the file or of the shards.
        is_folder: Whether it is a folder of shards rather than a single file.
        tensors: Name to tensor, in the order of the files.
        shards: Name to the file name (relative to the folder) that holds it; empty for a single file.
        metadata: The strings that the format keeps beside the tensors; those of the index for a folder of shards.
        sources: Every file that was read.
        crc: File to the CRC-32 that its trailer promises, for the `.ckpt` files that have one.
        companions: Other files of the folder (configuration, tokenizer), relative to it.
        adapter_config: The `adapter_config.json` of a PEFT folder.
        warnings: What is odd but legal, a sentence each.
    """

    path: Path
    format: str
    is_folder: bool
    tensors: Mapping[str, LazyTensor]
    shards: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    crc: Mapping[Source, int] = field(default_factory=dict)
    companions: tuple[Path, ...] = ()
    adapter_config: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors' contents."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Payload:
    """A stretch of a tensor's content at its place in an output file.

    Attributes:
        offset: Where in the file it begins.
        tensor: The index, in the file's list of tensors, of the tensor.
        start: First byte of the tensor's content, in C order.
        stop: End of it.
    """

    offset: int
    tensor: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where every byte of an output file comes from, known before the first one is written.

    Attributes:
        size: Bytes of the whole file.
        literals: (offset, bytes): headers and what stands between tensors.
        payloads: The tensors' contents, ordered by offset; with the literals they cover the file exactly once
            (but for a CRC trailer, which the writer appends).
    """

    size: int
    literals: Sequence[tuple[int, bytes]]
    payloads: Sequence[Payload]
