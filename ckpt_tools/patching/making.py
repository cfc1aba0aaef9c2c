"""Making a patch: chunk by chunk, from the base and from the plan of the merged model; nothing is read back.

How long the encoded chunks are is known when they are there. So they go to a hidden file first, in the order of the
base whichever thread is done first, and are copied from there to behind a header that says where each lies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from blake3 import blake3
from threadpoolctl import threadpool_limits

from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.patching.differences import bits_of, encode_differences
from ckpt_tools.patching.document import KEY, write_facts
from ckpt_tools.patching.grid import Grid
from ckpt_tools.patching.model import PatchFacts
from ckpt_tools.patching.patch_file import BITS, DIGEST_BYTES, DIGESTS, FACTORS, LENGTHS
from ckpt_tools.patching.prediction import Prediction
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.folding import DoraMerged
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Stored
from ckpt_tools.tensors.sources import Source, close_sources, open_source
from ckpt_tools.tensors.views import Constant
from ckpt_tools.writing.atomic import Workspace, keep_link, sync_folder
from ckpt_tools.writing.claims import claim_output
from ckpt_tools.writing.digests import Digests
from ckpt_tools.writing.file_job import FileJob
from ckpt_tools.writing.interrupts import HeldInterrupts, hold_interrupts
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile
from ckpt_tools.writing.threads import fill_files
from surgery.errors import Problem, ResourceError
from surgery.version import __version__

__all__ = ["Change", "MadePatch", "PatchDraft", "make_patch"]

_Chunks = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Change:
    """What a merge does to one tensor of the base.

    Attributes:
        base: The tensor, under the shape of the grid.
        merged: What it becomes, under the same; None where its bits stay.
        grid: How it is cut into chunks.
        prediction: How it follows from what it becomes.
        dora: What knows the factors of DoRA, which are computed once.
    """

    base: LazyTensor
    merged: LazyTensor | None
    grid: Grid
    prediction: Prediction
    dora: DoraMerged | None = None

    def with_factor(self) -> Change:
        """The same with DoRA's factors."""
        if self.dora is None:
            return self
        with np.errstate(over="ignore", invalid="ignore"):
            return replace(self, prediction=replace(self.prediction, factor=self.dora.factor()))

    def encode(self, matrix: int, rows: tuple[int, int]) -> _Chunks:
        """Some whole chunks of one matrix: the digest of each, and its encoded differences."""
        columns, place, (first, last) = self.grid.matrix[-1], self.grid.place(matrix), rows
        region = (*place, rows, (0, columns))
        base = self.base.read(region).reshape(last - first, columns)
        delta = self.prediction.delta(place, rows, columns) if self.merged is not None else None
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told where the merged tensor is written
            merged = base if self.merged is None else self.merged.read(region).reshape(last - first, columns)
        chunks = []
        for _, (low, high) in self.grid.spans(first, last):
            cut = slice(low - first, high - first)
            actual = bits_of(base[cut])
            encoded = b""
            if self.merged is not None:
                added = None if delta is None else delta.rows(cut.start, cut.stop)
                predicted = self.prediction.of(merged[cut], added, (low, high))
                encoded = encode_differences(actual, bits_of(predicted), self.prediction.dtype)
            chunks.append((blake3(actual.view("u1").data).digest(), encoded))
        return chunks


@dataclass(frozen=True, slots=True)
class PatchDraft:
    """A patch that is to be made.

    Attributes:
        path: Where it goes.
        facts: What it says.
        changes: What happens to each of its tensors.
    """

    path: Path
    facts: PatchFacts
    changes: tuple[Change, ...]


@dataclass(slots=True)
class MadePatch:
    """A patch that is complete, and waits in a hidden folder for the merged model to be complete too.

    Attributes:
        workspace: The hidden folder.
        nbytes: Bytes of its file.
        is_needed: Whether the merged model is in its place, so that the patch stays whatever happens.
    """

    workspace: Workspace
    nbytes: int
    is_needed: Callable[[], bool] = lambda: False
    _is_published: bool = False
    _is_new: bool = True
    _replaced: Path | None = None

    def publish(self) -> None:
        """Put it into its place.

        Raises:
            OutputExistsError: A file appeared there meanwhile, and may not be replaced.
            ResourceError: An I/O call failed.
        """
        output = self.workspace.output
        try:
            if self.workspace.force and output.is_file():
                self._is_new = False
                kept = self.workspace.folder / "replaced"
                if keep_link(output, kept):
                    self._replaced = kept
            self.workspace.put_in_place()
            self._is_published = True
            sync_folder(output.parent)
        except OSError as error:
            raise _failed(output, error) from error

    def withdraw(self) -> None:
        """Take it back, since the merged model could not be published; what it replaced returns."""
        if self._is_published and not self.is_needed():
            with suppress(OSError):
                if self._replaced is not None:
                    self._replaced.replace(self.workspace.output)
                elif self._is_new:
                    self.workspace.output.unlink()


@contextmanager
def make_patch(draft: PatchDraft, *, force: bool, budget: Budget, progress: Progress = SILENT) -> Iterator[MadePatch]:
    """Make a patch, whole; it appears when it is published, and goes where the block ends with an exception.

    Args:
        draft: What it is.
        force: Whether an existing one may be replaced.
        budget: Threads, and how much is held at a time.
        progress: Told how far it is.

    Raises:
        OutputExistsError: There is one, and it may not be replaced; or another run makes it.
        ResourceError: The disk is full, or an I/O call failed.
        InputChangedError: An input was modified meanwhile.
        KeyboardInterrupt: The run was interrupted.
    """
    # Nothing of a killed run is taken over: the digest is any.
    with claim_output(draft.path, "unmerge patch", is_folder=False, force=force) as workspace:
        workspace.discard(draft.path.name)
        with hold_interrupts() as held:
            try:
                size = _write(draft, workspace, budget, progress, held)
            except OSError as error:
                raise _failed(draft.path, error) from error
            finally:
                progress.finish()
                close_sources()
        made = MadePatch(workspace, size)
        try:
            yield made
        except BaseException:
            made.withdraw()
            raise


def _write(draft: PatchDraft, workspace: Workspace, budget: Budget, progress: Progress, held: HeldInterrupts) -> int:
    progress.start(sum(change.base.nbytes for change in draft.changes), "recording")
    part = workspace.new_part()
    lengths: list[int] = []
    digests: list[bytes] = []
    with (
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(budget.threads, thread_name_prefix="record") as pool,
        part.open("xb") as file,
    ):
        changes = [change.with_factor() for change in draft.changes]
        try:
            for chunks in _in_order(pool, changes, budget, progress, held):
                for digest, encoded in chunks:
                    digests.append(digest)
                    lengths.append(len(encoded))
                    file.write(encoded)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    entry = _file(draft, changes, open_source(part), lengths, digests)
    sizes: list[int] = []

    def keep(job: FileJob) -> None:
        workspace.complete(job.part, entry.name)
        sizes.append(job.size)

    job = FileJob(entry, workspace.new_part(), budget, SILENT, Digests(wanted=False), keep)
    fill_files([job], budget, held)
    part.unlink()
    return sizes[0]


def _in_order(
    pool: ThreadPoolExecutor,
    changes: Sequence[Change],
    budget: Budget,
    progress: Progress,
    held: HeldInterrupts,
) -> Iterator[_Chunks]:
    """What the tasks give, in their order, while a few are under way."""
    waiting: deque[tuple[int, Future[_Chunks]]] = deque()
    tasks = _tasks(changes, budget)
    while True:
        while len(waiting) < 2 * budget.threads and (task := next(tasks, None)) is not None:
            nbytes, work = task
            waiting.append((nbytes, pool.submit(work)))
        if not waiting:
            return
        held.raise_pending()
        nbytes, future = waiting.popleft()
        yield future.result()
        progress.advance(nbytes)


def _tasks(changes: Sequence[Change], budget: Budget) -> Iterator[tuple[int, Callable[[], _Chunks]]]:
    """Some chunks at a time, as many as the budget lets a thread hold; factors are read once for them."""
    for change in changes:
        grid = change.grid
        row_elements = max(grid.matrix[-1], 1)
        rows = max(budget.band_elements // (grid.rows * row_elements), 1) * grid.rows
        for matrix in range(grid.matrices if grid.chunks else 0):
            for start in range(0, grid.matrix[-2], rows):
                stop = min(start + rows, grid.matrix[-2])
                nbytes = (stop - start) * row_elements * change.base.dtype.itemsize
                yield nbytes, partial(change.encode, matrix, (start, stop))


def _file(
    draft: PatchDraft,
    changes: Sequence[Change],
    source: Source,
    lengths: Sequence[int],
    digests: Sequence[bytes],
) -> OutputFile:
    """The patch's file, whose chunks lie in another one."""
    table = np.array(lengths, np.uint32)
    digest_table = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    offsets = np.concatenate([[0], np.cumsum(table, dtype=np.int64)])
    factors, bits = [], []
    start = 0
    for record, change in zip(draft.facts.tensors, changes, strict=True):
        end = start + change.grid.chunks
        offset, nbytes = int(offsets[start]), int(offsets[end] - offsets[start])
        run = ByteRun(source, offset, nbytes)
        bits.append((BITS + record.name, Stored(BY_NAME["uint8"], (nbytes,), (run,))))
        if change.prediction.factor is not None:
            factor = change.prediction.factor
            factors.append((FACTORS + record.name, Constant(factor, dtype_of(factor))))
        start = end
    tables: list[NamedTensor] = [
        (LENGTHS, Constant(table, BY_NAME["uint32"])),
        (DIGESTS, Constant(digest_table, BY_NAME["uint8"])),
    ]
    metadata = {KEY: write_facts(draft.facts), "pet_surgery.version": __version__}
    return OutputFile(draft.path.name, "safetensors", (*factors, *tables, *bits), metadata)


def _failed(path: Path, error: OSError) -> ResourceError:
    found = (error.strerror or str(error)).lower()
    return ResourceError(Problem(str(path), f"writing failed: {found}", remedy="Choose another place for the patch"))
