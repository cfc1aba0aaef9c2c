"""One checkpoint file on its way: the tasks that fill it, and what ends it when the last of them is done."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ckpt_tools.formats.ckpt import crc_trailer
from ckpt_tools.formats.model import Payload
from ckpt_tools.progress import Progress
from ckpt_tools.tensors.crc import crc32
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics, bands, byte_stretches, region_shape
from ckpt_tools.tensors.views import Sliced, unreshaped
from ckpt_tools.writing.copying import WRITEBACK_BYTES, Copy, coalesce, copies_of, copy_range, group, write_at
from ckpt_tools.writing.digests import Digests
from ckpt_tools.writing.linux import preallocate, start_writeback
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile, whole_of
from ckpt_tools.writing.sharing import Share, Taker, meeting

__all__ = ["FileJob", "Measured", "Task", "add_up", "share_tasks"]

Task = Callable[[], None]

Measured = dict[str, dict[str, Statistics]]
"""What was measured of tensors, by name and by the rectangle of the whole tensor: one that several files hold counts
once."""

_CRC_CHUNK = 4 * 2**20

# What is read at once for several files: in each of a few of them it is a stretch that is worth a call.
_SHARED_BYTES = 4 * 2**20


class FileJob:
    """A file, the tasks that fill it, and what was measured meanwhile.

    Args:
        entry: The file.
        part: Where it grows: a free path in a folder that is there.
        budget: How much is read at a time.
        progress: What is told how far it is.
        digests: What is told of the tensors' content.
        keep: What is done with it when it is written, synced and closed.
    """

    def __init__(
        self,
        entry: OutputFile,
        part: Path,
        budget: Budget,
        progress: Progress,
        digests: Digests,
        keep: Callable[[FileJob], None],
    ) -> None:
        self.entry = entry
        self.part = part
        self._budget = budget
        self._progress = progress
        self.digests = digests
        self._keep = keep
        self._layout = entry.layout()
        self.size = self._layout.size + (len(crc_trailer(0)) if entry.crc else 0)
        self._payloads: dict[int, list[Payload]] = {}
        for payload in self._layout.payloads:
            self._payloads.setdefault(payload.tensor, []).append(payload)
        self._lock = threading.Lock()
        self._descriptor = -1
        self._open_tasks = 0
        self._shared: set[int] = set()
        self._measured: Measured = {}

    def own_tasks(self) -> list[Task]:
        """What fills the file but for its shared tensors; to be called once, before any task runs."""
        tasks = list(self._make_tasks())
        self._open_tasks += len(tasks)
        return [partial(self._do, task) for task in tasks]

    def expect(self, index: int, tasks: int) -> None:
        """Leave a tensor to shared tasks, each of which ends with `end_task`."""
        self._shared.add(index)
        self._open_tasks += tasks

    def end_task(self, written: int) -> None:
        """A task is done; the last one ends the file."""
        self._progress.advance(written)
        with self._lock:
            self._open_tasks -= 1
            is_last = self._open_tasks == 0
        if is_last:
            self._finish()

    def write(self, index: int, start: int, data: memoryview) -> None:
        """Write bytes of a tensor's content, from byte `start` of it on, to where the file keeps them."""
        for offset, low, high in self._places(index, start, start + len(data)):
            write_at(self._open(), data[low - start : high - start], offset)

    def digest(self, index: int, start: int, data: memoryview) -> None:
        """Take note of bytes of a tensor's content, from byte `start` of it on; of a slice where it is one stretch."""
        name, tensor = self.entry.tensors[index]
        whole, region = whole_of(self.entry, tensor)
        begin = _only_stretch(whole, region)
        if begin is not None:
            self.digests.add(name, whole, begin + start, data)

    def start_writeback(self, index: int, start: int, stop: int) -> None:
        """Let the disk begin with bytes of a tensor's content that were written."""
        for offset, low, high in self._places(index, start, stop):
            if high - low >= WRITEBACK_BYTES:
                start_writeback(self._open(), offset, high - low)

    def measure(self, index: int, region: Region, statistics: Statistics) -> None:
        """Add what was measured of a rectangle of the tensor that a tensor of this file is, or is a slice of."""
        place = ",".join(f"{start}:{stop}" for start, stop in region)
        with self._lock:
            self._measured.setdefault(self.entry.tensors[index][0], {})[place] = statistics

    def measured(self) -> Measured:
        """What was measured."""
        return self._measured

    def close(self) -> None:
        """Close the file if a failure left it open."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> int:
        """The file's descriptor; the first call makes the file."""
        with self._lock:
            if self._descriptor < 0:
                self._descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                preallocate(self._descriptor, self.size)
            return self._descriptor

    def _do(self, task: Callable[[], int]) -> None:
        self.end_task(task())

    def _finish(self) -> None:
        if self.entry.manifest is not None:
            manifest = replace(self.entry.manifest, digests=self.digests.complete())
            for offset, data in replace(self.entry, manifest=manifest).layout().literals:
                write_at(self._descriptor, memoryview(data), offset)
        if self.entry.crc:
            self._progress.advance(_append_crc(self._descriptor, self._layout.size))
        os.fsync(self._descriptor)
        self.close()
        self._keep(self)

    def _make_tasks(self) -> Iterator[Callable[[], int]]:
        yield self._write_literals
        copies: list[Copy] = []
        for index, payloads in self._payloads.items():
            if index in self._shared:
                continue
            tensor = self.entry.tensors[index][1]
            # The kernel copies, unless somebody has to see the bytes.
            if not self.digests.wanted and tensor.byte_runs() is not None:
                copies.extend(copies_of(tensor, payloads))
                continue
            computed = unreshaped(tensor)
            for region in bands(computed.shape, self._budget.band_elements):
                yield partial(self._compute, index, computed, region)
        for pieces in group(coalesce(copies)):
            yield partial(self._copy, pieces)

    def _write_literals(self) -> int:
        for name, tensor in self.entry.tensors:
            if not tensor.size:  # no task comes by
                self.digests.add(name, whole_of(self.entry, tensor)[0], 0, memoryview(b""))
        descriptor = self._open()  # a .ckpt without tensors has no literals either, and is a file all the same
        for offset, data in self._layout.literals:
            write_at(descriptor, memoryview(data), offset)
        return sum(len(data) for _, data in self._layout.literals)

    def _compute(self, index: int, tensor: LazyTensor, region: Region) -> int:
        statistics = Statistics()
        begin = end = _flat_start(tensor.shape, region) * tensor.dtype.itemsize
        # What overflows is counted by name, and told by whoever approves the outcome.
        with np.errstate(over="ignore", invalid="ignore"):
            for values in tensor.pieces(region, statistics):
                data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                self.write(index, end, data)
                self.digest(index, end, data)
                end += len(data)
        self.start_writeback(index, begin, end)
        if statistics != Statistics():
            self.measure(index, _moved(region, tensor.region) if isinstance(tensor, Sliced) else region, statistics)
        return end - begin

    def _copy(self, pieces: list[Copy]) -> int:
        for piece in pieces:
            copy_range(piece, self._open())
        return sum(piece.length for piece in pieces)

    def _places(self, index: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Where the file keeps the bytes `start` to `stop` of a tensor's content: (file offset, first byte, end)."""
        for payload in self._payloads.get(index, ()):
            low, high = max(start, payload.start), min(stop, payload.stop)
            if low < high:
                yield payload.offset + low - payload.start, low, high


def share_tasks(share: Share, jobs: Sequence[FileJob], budget: Budget) -> list[Task]:
    """What fills a shared tensor's place in all files that take of it.

    Args:
        share: What is taken, and from what.
        jobs: The files' jobs, by their number.
        budget: How much is read at a time.
    """
    limit = min(budget.band_elements, max(_SHARED_BYTES // share.tensor.dtype.itemsize, 1))
    regions = [_moved(region, share.region) for region in bands(region_shape(share.region), limit)]
    for taker in share.takers:
        jobs[taker.file].expect(taker.index, sum(meeting(share, taker, region) is not None for region in regions))
    return [partial(_fill, share, jobs, region, number) for number, region in enumerate(regions)]


def _fill(share: Share, jobs: Sequence[FileJob], region: Region, number: int) -> None:
    # Thousands of ranks may take of each band: they are looked for anew, rather than listed for all bands at once.
    takers = [taker for taker in share.takers if meeting(share, taker, region) is not None]
    if not takers:
        return
    statistics = Statistics()
    with np.errstate(over="ignore", invalid="ignore"):
        values = share.tensor.read(region, statistics)
    # Counted once, however many files take of it.
    jobs[takers[0].file].measure(takers[0].index, region, statistics)
    _digest_shared(share, takers, jobs, region, values)
    # Each band begins with another file, as threads that write to the same one wait for each other.
    for taker in takers[number % len(takers) :] + takers[: number % len(takers)]:
        met = meeting(share, taker, region)
        assert met is not None
        cut, stretches = met
        content = np.ascontiguousarray(values[cut]).reshape(-1).view(np.uint8).data
        done = end = 0
        for start, length in stretches:
            jobs[taker.file].write(taker.index, start, content[done : done + length])
            if jobs[taker.file].entry.rank is None:
                jobs[taker.file].digest(taker.index, start, content[done : done + length])
            done, end = done + length, start + length
        if end == math.prod(region_shape(taker.region)) * share.tensor.dtype.itemsize:
            jobs[taker.file].start_writeback(taker.index, 0, end)
        jobs[taker.file].end_task(done)


def _digest_shared(
    share: Share, takers: Sequence[Taker], jobs: Sequence[FileJob], region: Region, values: np.ndarray
) -> None:
    """Take note of a band of a tensor of which ranks hold slices: it is a stretch of the whole, as slices are not."""
    begin = _only_stretch(share.tensor, region)
    if begin is None or not jobs[takers[0].file].digests.wanted:
        return
    content = values.reshape(-1).view(np.uint8).data
    names = dict.fromkeys(
        job.entry.tensors[taker.index][0] for taker in takers if (job := jobs[taker.file]).entry.rank is not None
    )
    for name in names:
        jobs[takers[0].file].digests.add(name, share.tensor, begin, content)


def add_up(measured: Measured) -> dict[str, Statistics]:
    """The sums of what was measured of each tensor, in an order that does not depend on the threads."""
    totals = {}
    for name, places in measured.items():
        totals[name] = Statistics()
        for place in sorted(places):
            totals[name].add(places[place])
    return totals


def _moved(region: Region, place: Region) -> Region:
    """A rectangle of a rectangle, as one of the whole."""
    return tuple((low + start, low + stop) for (start, stop), (low, _) in zip(region, place, strict=True))


def _only_stretch(whole: LazyTensor, region: Region) -> int | None:
    """Where in the content of the whole a rectangle of it begins, in bytes; None where it is not one stretch."""
    stretches = list(itertools.islice(byte_stretches(whole.shape, region, whole.dtype.itemsize), 2))
    return stretches[0][0] if len(stretches) == 1 else None


def _flat_start(shape: tuple[int, ...], region: Region) -> int:
    flat = 0
    for size, (start, _) in zip(shape, region, strict=True):
        flat = flat * size + start
    return flat


def _append_crc(descriptor: int, size: int) -> int:
    crc, done = 0, 0
    while done < size and (data := os.pread(descriptor, min(_CRC_CHUNK, size - done), done)):
        crc = crc32(data, crc)
        done += len(data)
    trailer = crc_trailer(crc)
    write_at(descriptor, memoryview(trailer), size)
    return len(trailer)
