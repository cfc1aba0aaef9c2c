"""A plan: every file of an output, every tensor in it and where its bytes come from, before a byte is written.

Plans are pure: making, printing, digesting and pickling one does no I/O. `ckpt_tools.writing.write` executes them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpt_tools.formats.ckpt import crc_trailer, layout_ckpt
from ckpt_tools.formats.model import FileLayout, NamedTensor
from ckpt_tools.formats.safetensors import layout_safetensors
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Region, full_region, region_shape
from ckpt_tools.tensors.sources import Source
from ckpt_tools.tensors.views import Sliced
from surgery.version import __version__

__all__ = ["Entry", "OutputBytes", "OutputCopy", "OutputFile", "Plan"]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A checkpoint file to be written.

    Attributes:
        name: Its path relative to the output folder; just a name for a single file.
        format: `ckpt` or `safetensors`.
        tensors: What it holds, in order.
        metadata: Strings beside the tensors; `.ckpt` has no place for them.
        crc: Whether a `.ckpt` ends with a CRC-32 trailer.
        rank: The rank whose slices it holds; None for a file that is no rank's.
    """

    name: str
    format: str
    tensors: tuple[NamedTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    crc: bool = False
    rank: int | None = None

    def layout(self) -> FileLayout:
        """Where every byte of the file comes from.

        Raises:
            MismatchError: A tensor is of a type that the format cannot hold.
        """
        if self.format == "ckpt":
            return layout_ckpt(self.tensors)
        return layout_safetensors(self.tensors, self.metadata)

    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self.layout().size + (len(crc_trailer(0)) if self.crc else 0)


@dataclass(frozen=True, slots=True)
class OutputCopy:
    """A file that is carried over as it is."""

    name: str
    source: Source


@dataclass(frozen=True, slots=True)
class OutputBytes:
    """A small file with given content."""

    name: str
    data: bytes


Entry = OutputFile | OutputCopy | OutputBytes


@dataclass(frozen=True, slots=True)
class Plan:
    """All files of an output.

    Attributes:
        output: Where the output will lie: a file, or a folder with the entries in it.
        is_folder: Which of the two.
        entries: What is written, in order; what makes a folder complete (index, configuration) comes last.
    """

    output: Path
    is_folder: bool
    entries: tuple[Entry, ...]

    def files(self) -> Iterator[OutputFile]:
        """The checkpoint files."""
        return (entry for entry in self.entries if isinstance(entry, OutputFile))

    def of_ranks(self, ranks: Container[int]) -> Plan:
        """The part of this plan that is the files of some ranks; what makes the output complete is in no part."""
        return replace(self, entries=tuple(file for file in self.files() if file.rank in ranks))

    def tensors(self) -> Iterator[NamedTensor]:
        """All tensors of all files."""
        for file in self.files():
            yield from file.tensors

    def sources(self) -> set[Source]:
        """Every file that is read."""
        found = {entry.source for entry in self.entries if isinstance(entry, OutputCopy)}
        for tensor, _ in self._wholes():
            files = tensor.files()
            found.update((run.source for run in tensor.sources()) if files is None else files)
        return found

    def bytes_read(self) -> int:
        """Bytes of the inputs that are read, each once; of a tensor that is wanted in part, as large a part."""
        total = sum(entry.source.size for entry in self.entries if isinstance(entry, OutputCopy))
        runs: set[ByteRun] = set()
        for tensor, regions in self._wholes():
            wanted = sum(math.prod(region_shape(region)) for region in regions)
            if wanted < tensor.size:
                size = tensor.nbytes if tensor.files() is not None else _union(set(tensor.sources()))
                total += -(-size * wanted // tensor.size)
            elif tensor.files() is None:
                runs.update(tensor.sources())
            else:
                total += tensor.nbytes
        return total + _union(runs)

    def bytes_written(self) -> int:
        """Bytes of the output."""
        return sum(_entry_sizes(self.entries))

    def digest(self) -> str:
        """SHA-256 over all that decides the output's bytes, the inputs' identity and this project's version too."""
        digest = hashlib.sha256(f"{__version__}\n{self.is_folder}\n".encode())
        known: dict[int, str] = {}
        for entry in self.entries:
            digest.update(f"{_text(entry, known)}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _wholes(self) -> Iterable[tuple[LazyTensor, set[Region]]]:
        """All tensors, one of which many files hold a slice once, and the rectangles of it that are wanted."""
        found: dict[int, tuple[LazyTensor, set[Region]]] = {}
        for _, tensor in self.tensors():
            whole, region = (tensor.source, tensor.region) if isinstance(tensor, Sliced) else (tensor, None)
            found.setdefault(id(whole), (whole, set()))[1].add(full_region(whole.shape) if region is None else region)
        return found.values()


def _text(entry: Entry, known: dict[int, str]) -> str:
    """An entry as text; a tensor of which many files hold a slice is spelled out once, and then named by its digest."""
    if not isinstance(entry, OutputFile):
        return repr(entry)
    parts = [repr(replace(entry, tensors=()))]
    for name, tensor in entry.tensors:
        regions = []
        while isinstance(tensor, Sliced):
            regions.append(tensor.region)
            tensor = tensor.source
        if id(tensor) not in known:
            known[id(tensor)] = hashlib.sha256(repr(tensor).encode("utf-8", "surrogatepass")).hexdigest()
        parts.append(f"{name!r} {regions} {known[id(tensor)]}")
    return "\n".join(parts)


def _entry_sizes(entries: Iterable[Entry]) -> Iterator[int]:
    """The size of each file; files of ranks, which differ in what they hold and not in how much, are laid out once."""
    known: dict[object, int] = {}
    for entry in entries:
        if isinstance(entry, OutputFile):
            # A name has one type in a plan: its slices are of one tensor.
            shapes = tuple((name, tensor.shape) for name, tensor in entry.tensors)
            key = hash((entry.format, entry.crc, tuple(entry.metadata.items()), shapes))
            if key not in known:
                known[key] = entry.nbytes()
            yield known[key]
        else:
            yield entry.source.size if isinstance(entry, OutputCopy) else len(entry.data)


def _union(runs: set[ByteRun]) -> int:
    total, last_path, last_end = 0, "", 0
    for run in sorted(runs, key=lambda run: (run.source.path, run.offset, run.length)):
        if run.source.path != last_path:
            last_path, last_end = run.source.path, 0
        end = run.offset + run.length
        total += max(0, end - max(run.offset, last_end))
        last_end = max(last_end, end)
    return total
