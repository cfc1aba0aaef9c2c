"""The digests of an output's tensors: made of what passes by while files are written, and of what lies there else."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from ckpt_tools.progress import Progress
from ckpt_tools.tensors.digests import TensorDigest
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import (
    ByteRun,
    LazyTensor,
    Region,
    Statistics,
    Stored,
    bands,
    byte_stretches,
    region_shape,
)
from ckpt_tools.tensors.sources import open_source
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile, whole_of

__all__ = ["Digests", "digest_tensors", "written_tensors"]


class Digests:
    """What was seen of an output's tensors, by name. Safe on threads.

    Args:
        wanted: Whether anybody wants digests; if not, nothing is hashed.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        self._lock = threading.Lock()
        self._open: dict[str, TensorDigest] = {}
        self._complete: dict[str, str] = {}

    def add(self, name: str, whole: LazyTensor, start: int, data: memoryview) -> None:
        """Take note of content of a tensor that is written, from byte `start` of the whole on."""
        if not self.wanted:
            return
        with self._lock:
            if name in self._complete:
                return
            digest = self._open.get(name)
            if digest is None:
                digest = self._open[name] = TensorDigest(whole.dtype, whole.shape, whole.nbytes)
        digest.add(start, data)
        found = digest.hexdigest()
        if found is not None:
            with self._lock:
                self._complete[name] = found
                self._open.pop(name, None)

    def add_complete(self, digests: Mapping[str, str]) -> None:
        """Take over what another process found."""
        with self._lock:
            self._complete.update(digests)

    def known(self, file: OutputFile) -> dict[str, str]:
        """Those of a file's tensors all of whose content was seen."""
        with self._lock:
            return {name: self._complete[name] for name, _ in file.tensors if name in self._complete}

    def complete(self) -> dict[str, str]:
        """The digests of tensors all of whose content was seen."""
        with self._lock:
            return dict(self._complete)


def digest_tensors(
    tensors: Mapping[str, LazyTensor], budget: Budget, progress: Progress, what: str = "hashing"
) -> dict[str, str]:
    """Read tensors and make their digests, in bands on threads.

    Raises:
        PetSurgeryError: An input changed, or could not be read.
    """
    progress.start(sum(tensor.nbytes for tensor in tensors.values()), what)
    with ThreadPoolExecutor(budget.threads, thread_name_prefix="digest") as pool:

        def add(digest: TensorDigest, tensor: LazyTensor, region: Region) -> None:
            data = np.ascontiguousarray(tensor.read(region)).reshape(-1).view(np.uint8).data
            digest.add(next(byte_stretches(tensor.shape, region, tensor.dtype.itemsize))[0], data)
            progress.advance(len(data))

        found = {}
        for name, tensor in tensors.items():
            digest = TensorDigest(tensor.dtype, tensor.shape, tensor.nbytes)
            regions = bands(tensor.shape, min(budget.band_elements, 2**20)) if tensor.size else ()
            for _ in pool.map(add, *zip(*((digest, tensor, region) for region in regions), strict=True)):
                pass
            complete = digest.hexdigest()
            assert complete is not None, name
            found[name] = complete
    progress.finish()
    return found


def written_tensors(files: Iterable[OutputFile], names: set[str], folder: Path) -> dict[str, LazyTensor]:
    """Tensors as they lie in files that were written, whole, whichever slices the files hold.

    Args:
        files: All files of the plan.
        names: The tensors that are wanted.
        folder: Where the files lie.
    """
    parts: dict[str, dict[Region, LazyTensor]] = {}
    wholes: dict[str, LazyTensor] = {}
    for file in files:
        if not any(name in names for name, _ in file.tensors):
            continue
        source = open_source(folder / file.name)
        payloads: dict[int, list[ByteRun]] = {}
        for payload in file.layout().payloads:
            run = ByteRun(source, payload.offset, payload.stop - payload.start)
            payloads.setdefault(payload.tensor, []).append(run)
        for index, (name, tensor) in enumerate(file.tensors):
            if name in names:
                wholes[name], region = whole_of(file, tensor)
                runs = tuple(payloads.get(index, ()))
                parts.setdefault(name, {}).setdefault(region, Stored(tensor.dtype, tensor.shape, runs))
    return {name: _Mosaic(wholes[name].dtype, wholes[name].shape, tuple(parts[name].items())) for name in wholes}


@final
@dataclass(frozen=True, slots=True)
class _Mosaic(LazyTensor):
    """A tensor of rectangles that cover it, and may overlap where they hold the same."""

    dtype: DType
    shape: tuple[int, ...]
    parts: Sequence[tuple[Region, LazyTensor]]

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        out = np.empty(region_shape(region), self.dtype.numpy)
        for inner, place, part in self._meeting(region):
            out[place] = part.read(inner)
        return out

    def _meeting(self, region: Region) -> Iterator[tuple[Region, tuple[slice, ...], LazyTensor]]:
        for place, part in self.parts:
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(region, place, strict=True)]
            if all(start < stop for start, stop in common):
                inner = tuple((a - low, b - low) for (a, b), (low, _) in zip(common, place, strict=True))
                outer = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(common, region, strict=True))
                yield inner, outer, part
