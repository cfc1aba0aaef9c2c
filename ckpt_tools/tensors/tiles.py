"""The arithmetic of a fold, in tiles: W + delta in float32, rounded once, and what is measured on the way.

A BLAS adds up the products of an element in another order at the edge of a matrix than within, and in a small matrix
than in a large one. So the tiles of a delta stand on a grid that begins at the first element of the whole weight, and a
slice that cuts a tile computes all of the tile's delta: the same call on the same numbers, hence the same bits,
whatever slice is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_tools.tensors import native
from ckpt_tools.tensors.casts import count_nonfinite, narrow, widen
from ckpt_tools.tensors.lazy import Statistics
from surgery.lowrank import lora_delta

__all__ = ["TileFactors", "finish", "fold_matrix", "row_spans", "whole_columns", "whole_rows"]

Span = tuple[int, int]

# The delta of a tile is 512 KiB of float32, within a core's second-level cache; smaller ones make two threads meet more
# often at the interpreter's lock.
_TILE_ROWS = 64
_TILE_COLUMNS = 2048

# What is read, folded and written in one go: from cache to cache.
_SPAN_BYTES = 2**19


def whole_rows(rows: Span, count: int) -> Span:
    """The rows of all tiles that some rows of a matrix of `count` rows meet."""
    return _whole(rows, _TILE_ROWS, count)


def whole_columns(columns: Span, count: int) -> Span:
    """The columns of all tiles that some columns of a matrix of `count` columns meet."""
    return _whole(columns, _TILE_COLUMNS, count)


def row_spans(rows: Span, columns: int, itemsize: int) -> Iterator[Span]:
    """Rows of a matrix in spans that end with a tile and hold about 512 KiB.

    Args:
        rows: The rows.
        columns: Elements of a row that are read.
        itemsize: Bytes of an element.
    """
    start, stop = rows
    height = max(_SPAN_BYTES // (columns * itemsize * _TILE_ROWS), 1) * _TILE_ROWS
    while start < stop:
        end = min(start - start % _TILE_ROWS + height, stop)
        yield start, end
        start = end


def _whole(span: Span, tile: int, count: int) -> Span:
    start, stop = span
    return start - start % tile, min(stop + -stop % tile, count)


@dataclass(frozen=True, slots=True)
class TileFactors:
    """A term's factors for the tiles that a slice meets.

    Attributes:
        left: `(rows, rank)` of whole tiles.
        right: `(rank, columns)` of each tile.
        scaling: The factor in front.
    """

    left: np.ndarray
    right: tuple[np.ndarray, ...]
    scaling: float

    def below(self, rows: int) -> TileFactors:
        """The factors without those of the first rows, which are whole tiles."""
        return TileFactors(self.left[rows:], self.right, self.scaling)

    @classmethod
    def cut(cls, left: np.ndarray, right: np.ndarray, scaling: float) -> TileFactors:
        """Factors of whole tiles, `(rows, rank)` and `(rank, columns)`, cut into tiles."""
        if math.frexp(scaling)[0] in (0.5, -0.5):
            # A power of two scales without rounding, wherever it is applied: here once instead of in each tile.
            left, scaling = left * left.dtype.type(scaling), 1.0
        starts = range(0, right.shape[1], _TILE_COLUMNS)
        # Each packed: how a matrix lies in memory may change the way that a product of it takes.
        tiles = tuple(np.ascontiguousarray(right[:, start : start + _TILE_COLUMNS]) for start in starts)
        return cls(np.ascontiguousarray(left), tiles, scaling)


def fold_matrix(
    factors: Sequence[TileFactors],
    place: tuple[Span, Span],
    stored: np.ndarray,
    out: np.ndarray,
    multiplier: np.ndarray | None,
    statistics: Statistics | None,
) -> None:
    """Fold a slice of one matrix, tile by tile.

    Args:
        factors: Those of each term, for `whole_rows` and `whole_columns` of the place.
        place: The rows and columns of the matrix that the slice is.
        stored: The slice of the weight before, in the type it is stored in.
        out: Where to put the result, in the type it is to be stored in; not where `stored` lies.
        multiplier: DoRA's factor, of the slice's shape, or None.
        statistics: Where to add what is measured.
    """
    inner = factors[0].left.dtype
    (first, last), (left, right) = place
    delta, more = (np.empty(_TILE_ROWS * _TILE_COLUMNS, inner) for _ in range(2))
    for row, top in enumerate(range(first - first % _TILE_ROWS, last, _TILE_ROWS)):
        for column, edge in enumerate(range(left - left % _TILE_COLUMNS, right, _TILE_COLUMNS)):
            whole = _delta(factors, row, column, delta, more)
            height, width = whole.shape
            # Where the slice and the tile meet, counted from the slice's corner, and from the tile's.
            rows, columns = (max(first, top), min(last, top + height)), (max(left, edge), min(right, edge + width))
            tile = slice(rows[0] - first, rows[1] - first), slice(columns[0] - left, columns[1] - left)
            d = whole[rows[0] - top : rows[1] - top, columns[0] - edge : columns[1] - edge]
            factor = None if multiplier is None else multiplier[tile]
            if not native.fold_tile(stored[tile], d, factor, out[tile], statistics):
                _fold_tile(stored[tile], d, factor, out[tile], statistics)


def _fold_tile(
    stored: np.ndarray,
    delta: np.ndarray,
    factor: np.ndarray | None,
    out: np.ndarray,
    statistics: Statistics | None,
) -> None:
    """What `native.fold_tile` does, for every float type."""
    weight = widen(stored, np.empty(stored.shape, delta.dtype))
    merged = weight + delta
    if factor is not None:
        merged *= factor
        delta = merged - weight
    finish(stored, weight, merged, out, statistics, delta)


def _delta(factors: Sequence[TileFactors], row: int, column: int, delta: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The sum of all terms in one tile, in the scratch `delta`."""
    rows = slice(row * _TILE_ROWS, (row + 1) * _TILE_ROWS)
    shape = factors[0].left[rows].shape[0], factors[0].right[column].shape[1]
    total, term = (scratch[: shape[0] * shape[1]].reshape(shape) for scratch in (delta, more))
    for number, factor in enumerate(factors):
        lora_delta(factor.left[rows], factor.right[column], factor.scaling, term if number else total)
        if number:
            np.add(total, term, out=total)
    return total


def finish(
    stored: np.ndarray,
    weight: np.ndarray,
    merged: np.ndarray,
    out: np.ndarray,
    statistics: Statistics | None,
    delta: np.ndarray | None = None,
) -> None:
    """Round to the output's type, and measure.

    Args:
        stored: The weight before, in the type it is stored in.
        weight: The same, in the type that is computed in.
        merged: The weight after, in that type.
        out: Where to put it, rounded; not where `stored` lies.
        statistics: Where to add what is measured.
        delta: The difference of the two, where it is known.
    """
    narrow(merged, out)
    if statistics is None:
        return
    before = stored
    if stored.dtype != out.dtype:
        before = np.empty(merged.shape, out.dtype)
        narrow(weight, before)
    bits = np.dtype(f"u{out.dtype.itemsize}")
    with np.errstate(over="ignore", invalid="ignore"):
        difference = merged - weight if delta is None else delta
    statistics.elements += merged.size
    statistics.weight_square += _square(weight)
    statistics.delta_square += _square(difference)
    statistics.unchanged += int(np.count_nonzero(before.view(bits) == out.view(bits)))
    statistics.nonfinite_input += count_nonfinite(weight)
    statistics.nonfinite_output += count_nonfinite(out)


def _square(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.einsum("i,i->", flat, flat, dtype=np.float64))
