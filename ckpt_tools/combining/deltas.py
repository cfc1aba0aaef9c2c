"""A combined update that no product of narrow matrices is, tile by tile: pruned, elected and summed on the whole delta.

It is computed once and kept in a file without a name, which is then read as often as the decomposition needs it: what
is held in memory is a tile and the factors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from ckpt_tools.combining.model import Combination
from ckpt_tools.writing.scratch import scratch_failed
from surgery.combining import (
    MagnitudeCut,
    disjoint_mean,
    drop_and_rescale,
    elect_signs,
    magnitude_cut,
    task_arithmetic,
    trim,
)
from surgery.draws import uniform_draws
from surgery.lowrank import lora_delta

__all__ = ["TILE_ELEMENTS", "CombinedDelta", "combine_tasks"]

TILE_ELEMENTS = 2**18
"""Elements of a tile: 1 MiB of each task."""


class CombinedDelta:
    """The combined update of a layer, lying so that it has no more columns than rows.

    Args:
        lefts: Of each adapter `(out, rank)`, float32.
        rights: Of each adapter `(rank, in)`, float32.
        scalings: Of each adapter, the layer's.
        weights: Of each adapter.
        streams: What is dropped at random of each adapter is drawn for.
        how: The method.
    """

    def __init__(
        self,
        lefts: Sequence[np.ndarray],
        rights: Sequence[np.ndarray],
        scalings: Sequence[float],
        weights: Sequence[float],
        streams: Sequence[str],
        how: Combination,
    ) -> None:
        self.is_transposed = lefts[0].shape[0] < rights[0].shape[1]
        if self.is_transposed:
            lefts, rights = [right.T for right in rights], [left.T for left in lefts]
        self._lefts = [np.ascontiguousarray(left) for left in lefts]
        self._rights = [np.ascontiguousarray(right) for right in rights]
        self._scalings, self._weights, self._streams, self._how = scalings, weights, streams, how
        self.shape = lefts[0].shape[0], rights[0].shape[1]
        self._height = max(TILE_ELEMENTS // self.shape[1], 1)

    def spill(self, folder: Path) -> np.ndarray:
        """All of it, mapped from a file in a folder that is gone with the array, `shape`, float32."""
        try:
            with TemporaryFile(dir=folder) as file:
                # Where room is missing this fails; a mapping that is written to would be the end of the process.
                os.posix_fallocate(file.fileno(), 0, 4 * self.shape[0] * self.shape[1])
                matrix = np.memmap(file, np.float32, "r+", shape=self.shape)
        except OSError as error:
            raise scratch_failed(folder, error) from error
        cuts = [self._cut(task) for task in range(len(self._lefts))]
        for start, stop in self._spans():
            place = start * self.shape[1]
            tasks = [self._pruned(task, start, stop, cuts[task], place) for task in range(len(self._lefts))]
            matrix[start:stop] = combine_tasks(np.stack(tasks), self._weights, self._how)
        return matrix

    def _spans(self) -> Iterator[tuple[int, int]]:
        rows = self.shape[0]
        return ((start, min(start + self._height, rows)) for start in range(0, rows, self._height))

    def _tile(self, task: int, start: int, stop: int) -> np.ndarray:
        left = self._lefts[task][start:stop]
        tile = np.empty((stop - start, self.shape[1]), np.float32)
        lora_delta(left, self._rights[task], self._scalings[task], tile)
        return tile

    def _cut(self, task: int) -> MagnitudeCut | None:
        if self._how.how.prune != "magnitude" or self._how.density >= 1:
            return None
        count = int(self._how.density * (self.shape[0] * self.shape[1]))
        return magnitude_cut(lambda: (self._tile(task, *span) for span in self._spans()), count)

    def _pruned(self, task: int, start: int, stop: int, cut: MagnitudeCut | None, place: int) -> np.ndarray:
        tile = self._tile(task, start, stop)
        if cut is not None:
            return trim(tile, cut, place)
        if self._how.how.prune == "random" and self._how.density < 1:
            draws = uniform_draws(self._how.seed, self._streams[task], place, tile.size)
            return drop_and_rescale(tile, draws, self._how.density)
        return tile


def combine_tasks(tasks: np.ndarray, weights: Sequence[float], how: Combination) -> np.ndarray:
    """Pruned tasks to one: summed, or where a sign is elected the mean of those that agree.

    Args:
        tasks: `(tasks, ...)`.
        weights: One of each.
        how: The method.
    """
    if how.how.elects:
        return disjoint_mean(tasks, weights, elect_signs(tasks, how.majority_sign))
    return task_arithmetic(tasks, weights)
