"""Tensors of the base, brought back: what merged model and adapters predict, corrected, and proved as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import numpy as np
from blake3 import blake3

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.patching.differences import apply_differences, bits_of
from ckpt_tools.patching.grid import Grid
from ckpt_tools.patching.patch_file import ChunkTable
from ckpt_tools.patching.prediction import Prediction
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Region, Statistics, region_shape
from ckpt_tools.tensors.sources import read_exactly
from surgery.errors import CorruptInputError, Problem, VerificationError

__all__ = ["Restored"]


@final
@dataclass(frozen=True, eq=False)
class Restored(LazyTensor):
    """A tensor of the base, as the matrix or the stack of its grid.

    Whole chunks are restored for any rectangle that is read, and each is compared with the digest of the base's.

    Attributes:
        name: Its name in the base.
        merged: What it became, under the shape of the grid.
        prediction: How it follows from that.
        grid: Its chunks.
        table: Where they lie in the patch.
    """

    name: str
    merged: LazyTensor
    prediction: Prediction = field(repr=False)
    grid: Grid
    table: ChunkTable

    @property
    def dtype(self) -> DType:  # type: ignore[override]  # derived from the prediction
        return self.prediction.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived from the grid
        return self.grid.matrix

    def __repr__(self) -> str:
        # A plan's digest is made of it. Terms and DoRA's factors are the patch's, which the table names.
        return (
            f"Restored({self.name!r}, {self.dtype}, {self.merged}, {self.prediction.terms}, {self.grid}, {self.table})"
        )

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        out = np.empty(region_shape(region), self.dtype.numpy)
        flat, done = out.reshape(-1), 0
        for piece in self.pieces(region):
            flat[done : done + piece.size] = piece.reshape(-1)
            done += piece.size
        return out

    def pieces(self, region: Region, statistics: Statistics | None = None) -> Iterator[np.ndarray]:
        if any(start >= stop for start, stop in region):
            return
        *stack, (start, stop), (left, right) = region
        columns = self.grid.matrix[-1]
        for matrix in range(*(stack[0] if stack else (0, 1))):
            place = self.grid.place(matrix)
            spans = list(self.grid.spans(start, stop))
            first, last = spans[0][1][0], spans[-1][1][1]
            delta = self.prediction.delta(place, (first, last), columns)
            for number, (low, high) in spans:
                merged = self.merged.read((*place, (low, high), (0, columns))).reshape(high - low, columns)
                added = None if delta is None else delta.rows(low - first, high - first)
                values = self.prediction.of(merged, added, (low, high))
                self._correct(values, matrix * self.grid.chunks_of_matrix + number)
                yield values[max(start - low, 0) : stop - low, left:right]

    def sources(self) -> Iterator[ByteRun]:
        yield from self.merged.sources()
        for term in self.prediction.terms:
            yield from term.left.sources()
            yield from term.right.sources()
        first, last = int(self.table.offsets[0]), int(self.table.offsets[-1])
        yield ByteRun(self.table.source, first, last - first)

    def _correct(self, values: np.ndarray, chunk: int) -> None:
        """Make the base's values of predicted ones, in place."""
        run = self.table.place(chunk)
        encoded = read_exactly(run.source, run.offset, run.length)
        bits = bits_of(values)
        try:
            apply_differences(encoded, bits, self.dtype)
        except ValueError as error:
            where = f"{run.source.path}, chunk {chunk} of {quote_name(self.name)}"
            raise CorruptInputError(
                Problem(where, str(error), "what --unmerge-patch wrote", "Copy the patch again")
            ) from error
        if blake3(bits.view("u1").data).digest() != self.table.digests[chunk].tobytes():
            raise VerificationError(
                Problem(
                    f"{self.name}, chunk {chunk}",
                    "other values than the base had",
                    "the base's, bit for bit",
                    "The merged model was changed after the merge, or the patch is damaged: take the originals of both",
                )
            )
