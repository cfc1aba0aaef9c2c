"""How a tensor is cut into the chunks of a patch: whole rows, some hundred thousand elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ckpt_tools.tensors.lazy import Region

__all__ = ["Grid"]

_CHUNK_ELEMENTS = 2**18
_LARGEST_CHUNK = 2**20
# Rows of a fold's tile: a chunk that ends within one would compute it twice.
_TILE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Grid:
    """A tensor as a matrix or a stack of matrices, and the rows of each that a chunk is.

    Chunks are counted in C order; the last one of each matrix may have fewer rows.

    Attributes:
        matrix: `(rows, columns)` or `(matrices, rows, columns)`.
        rows: Rows of a chunk.
    """

    matrix: tuple[int, ...]
    rows: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Grid:
        """A grid for a tensor; one of two or three axes keeps its shape, where its rows are not too long."""
        if len(shape) < 2:
            matrix: tuple[int, ...] = (math.prod(shape), 1)
        elif len(shape) == 2 or math.prod(shape[1:]) <= _LARGEST_CHUNK:
            matrix = (shape[0], math.prod(shape[1:]))
        else:
            matrix = (shape[0], shape[1], math.prod(shape[2:]))
        return cls.of_matrix(matrix)

    @classmethod
    def of_matrix(cls, matrix: tuple[int, ...]) -> Grid:
        """A grid for a matrix or a stack of them."""
        columns = max(matrix[-1], 1)
        rows = _CHUNK_ELEMENTS // columns
        if rows < _TILE_ROWS:
            return cls(matrix, max(1, min(_TILE_ROWS, _LARGEST_CHUNK // columns)))
        return cls(matrix, rows - rows % _TILE_ROWS)

    @property
    def matrices(self) -> int:
        """How many matrices the stack has."""
        return self.matrix[0] if len(self.matrix) == 3 else 1

    @property
    def chunks_of_matrix(self) -> int:
        """Chunks of each matrix."""
        return -(-self.matrix[-2] // self.rows) if self.matrix[-1] else 0

    @property
    def chunks(self) -> int:
        """Chunks in all."""
        return self.matrices * self.chunks_of_matrix

    def place(self, matrix: int) -> Region:
        """The leading axes of a region that lies in one matrix."""
        return ((matrix, matrix + 1),) if len(self.matrix) == 3 else ()

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """The chunks that some rows of a matrix meet: their number in the matrix, and their rows."""
        for number in range(start // self.rows, -(-stop // self.rows)):
            yield number, (number * self.rows, min((number + 1) * self.rows, self.matrix[-2]))
