"""A plan: every file of an output, every tensor in it and where its bytes come from, before a byte is written.

Plans are pure: making, printing, digesting and pickling one does no I/O. `ckpt_tools.writing.write` executes them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpt_tools.formats.ckpt import crc_trailer, layout_ckpt
from ckpt_tools.formats.model import FileLayout, NamedTensor
from ckpt_tools.formats.safetensors import layout_safetensors
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Region, full_region, region_shape
from ckpt_tools.tensors.sources import Source
from ckpt_tools.tensors.views import Sliced
from ckpt_tools.writing.manifest import MANIFEST_KEY, MANIFEST_NAME, Manifest, ManifestInput, ManifestTensor
from surgery.version import __version__

__all__ = ["Entry", "OutputBytes", "OutputCopy", "OutputFile", "OutputManifest", "Plan", "whole_of", "with_manifest"]

_IDENTITY = re.compile(
    r"Source\(path=(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"), size=(\d+), mtime_ns=-?\d+, inode=\d+, device=\d+\)"
)


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
        manifest: The manifest that is part of its metadata; None where it lies elsewhere.
    """

    name: str
    format: str
    tensors: tuple[NamedTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    crc: bool = False
    rank: int | None = None
    manifest: Manifest | None = None

    def layout(self) -> FileLayout:
        """Where every byte of the file comes from.

        Raises:
            MismatchError: A tensor is of a type that the format cannot hold.
        """
        if self.format == "ckpt":
            return layout_ckpt(self.tensors)
        manifest = {} if self.manifest is None else {MANIFEST_KEY: self.manifest.to_text()}
        return layout_safetensors(self.tensors, {**self.metadata, **manifest})

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


@dataclass(frozen=True, slots=True)
class OutputManifest:
    """A manifest in a file of its own, whose digests are known when all else is written."""

    name: str
    manifest: Manifest


Entry = OutputFile | OutputCopy | OutputBytes | OutputManifest


@dataclass(frozen=True, slots=True)
class Plan:
    """All files of an output.

    Attributes:
        output: Where the output will lie: a file, or a folder with the entries in it.
        is_folder: Which of the two.
        entries: What is written, in order; what makes a folder complete (index, configuration) comes last.
        beside: The manifest of a single file that cannot hold it; it lies in the same folder.
    """

    output: Path
    is_folder: bool
    entries: tuple[Entry, ...]
    beside: OutputManifest | None = None

    def files(self) -> Iterator[OutputFile]:
        """The checkpoint files."""
        return (entry for entry in self.entries if isinstance(entry, OutputFile))

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, wherever it is to lie."""
        places = (*self.entries, *([] if self.beside is None else [self.beside]))
        return next((m for place in places if (m := getattr(place, "manifest", None)) is not None), None)

    def with_identity(self) -> Plan:
        """The same plan, whose manifest has the plan's digest, without where its inputs lie and when they were made."""
        if self.manifest is None:
            return self
        # Nor what a single file is called: two runs on the same inputs give equal files.
        plan = self if self.is_folder else replace(self, entries=tuple(replace(one, name="") for one in self.entries))
        digest = plan._digest(lambda text: _IDENTITY.sub(r"Source(\1)", text))
        return _place(self, replace(self.manifest, plan=digest))

    def of_ranks(self, ranks: Container[int]) -> Plan:
        """The part of this plan that is the files of some ranks; what makes the output complete is in no part."""
        return replace(self, entries=tuple(file for file in self.files() if file.rank in ranks))

    def tensors(self) -> Iterator[NamedTensor]:
        """All tensors of all files."""
        for file in self.files():
            yield from file.tensors

    @property
    def places(self) -> tuple[Path, ...]:
        """The paths that the output takes: its own, and that of a manifest beside it."""
        return (self.output, *([] if self.beside is None else [self.output.parent / self.beside.name]))

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
        return self._digest(str)

    def _digest(self, simplified: Callable[[str], str]) -> str:
        digest = hashlib.sha256(f"{__version__}\n{self.is_folder}\n".encode())
        known: dict[int, str] = {}
        for entry in self.entries:
            digest.update(f"{_text(entry, known, simplified)}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _wholes(self) -> Iterable[tuple[LazyTensor, set[Region]]]:
        """All tensors, one of which many files hold a slice once, and the rectangles of it that are wanted."""
        found: dict[int, tuple[LazyTensor, set[Region]]] = {}
        for _, tensor in self.tensors():
            whole, region = (tensor.source, tensor.region) if isinstance(tensor, Sliced) else (tensor, None)
            found.setdefault(id(whole), (whole, set()))[1].add(full_region(whole.shape) if region is None else region)
        return found.values()


def whole_of(file: OutputFile, tensor: LazyTensor) -> tuple[LazyTensor, Region]:
    """The tensor that a file holds or that it holds a slice of, and which: only files of ranks hold slices."""
    if file.rank is not None and isinstance(tensor, Sliced):
        return tensor.source, tensor.region
    return tensor, full_region(tensor.shape)


def with_manifest(plan: Plan, command: str, inputs: Iterable[ManifestInput], *, digest: bool) -> Plan:
    """A plan whose output says what it was made of.

    Args:
        plan: The complete plan.
        command: Which command made it.
        inputs: What went in.
        digest: Whether the manifest has the tensors' digests.
    """
    wholes: dict[str, LazyTensor] = {}
    for file in plan.files():
        for name, tensor in file.tensors:
            if name not in wholes:
                wholes[name] = whole_of(file, tensor)[0]
    manifest = Manifest(
        command,
        tuple(inputs),
        next(plan.files()).format,
        tuple(file.name for file in plan.files()) if plan.is_folder else (),
        tuple(ManifestTensor(name, tensor.dtype.name, tensor.shape) for name, tensor in wholes.items()),
        tuple(entry.name for entry in plan.entries if isinstance(entry, OutputBytes | OutputCopy)),
        digest,
    )
    return _place(plan, manifest)


def _place(plan: Plan, manifest: Manifest) -> Plan:
    if plan.is_folder:
        entries = tuple(entry for entry in plan.entries if not isinstance(entry, OutputManifest))
        return replace(plan, entries=(*entries, OutputManifest(MANIFEST_NAME, manifest)))
    (file,) = plan.files()
    if file.format == "safetensors":
        return replace(plan, entries=(replace(file, manifest=manifest),))
    return replace(plan, beside=OutputManifest(f"{plan.output.stem}.{MANIFEST_NAME}", manifest))


def _text(entry: Entry, known: dict[int, str], simplified: Callable[[str], str]) -> str:
    """An entry as text; a tensor of which many files hold a slice is spelled out once, and then named by its digest."""
    if not isinstance(entry, OutputFile):
        return simplified(repr(entry))
    parts = [repr(replace(entry, tensors=()))]
    for name, tensor in entry.tensors:
        regions = []
        while isinstance(tensor, Sliced):
            regions.append(tensor.region)
            tensor = tensor.source
        if id(tensor) not in known:
            text = simplified(repr(tensor))
            known[id(tensor)] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        parts.append(f"{name!r} {regions} {known[id(tensor)]}")
    return "\n".join(parts)


def _entry_sizes(entries: Iterable[Entry]) -> Iterator[int]:
    """The size of each file; files of ranks, which differ in what they hold and not in how much, are laid out once."""
    known: dict[object, int] = {}
    for entry in entries:
        if isinstance(entry, OutputFile):
            # A name has one type in a plan: its slices are of one tensor.
            shapes = tuple((name, tensor.shape) for name, tensor in entry.tensors)
            key = hash((entry.format, entry.crc, entry.manifest is None, tuple(entry.metadata.items()), shapes))
            if key not in known:
                known[key] = entry.nbytes()
            yield known[key]
        elif isinstance(entry, OutputManifest):
            yield len(entry.manifest.to_bytes())
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
