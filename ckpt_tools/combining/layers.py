"""Layers to combined layers: on threads, a layer at a time each, the results in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ckpt_tools.combining.factors import Factors, MatrixPart, combine_matrices
from ckpt_tools.combining.foretold import matrix_shape, scratch_bytes, threads_for
from ckpt_tools.combining.model import Combination, Layer, Part
from ckpt_tools.progress import Progress
from ckpt_tools.reports import CombinedLayer
from ckpt_tools.tensors.casts import cast_array, count_nonfinite, widen
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Stored, files_of
from ckpt_tools.tensors.sources import check_unchanged, open_source
from ckpt_tools.writing.finite import wider_type
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.scratch import check_scratch, scratch_failed
from surgery.errors import NonFiniteError, Problem

__all__ = [
    "Combined",
    "bias_problem",
    "combine_layers",
    "layer_matrices",
    "layer_problems",
]


@dataclass(frozen=True, slots=True)
class Combined:
    """A layer's combined update, b @ a with the scale 1, and its report.

    Attributes:
        a: As of `Part`, of the new rank.
        b: The same.
        report: What was done.
    """

    a: LazyTensor
    b: LazyTensor
    report: CombinedLayer


def layer_problems(layers: Sequence[Layer], how: Combination) -> list[Problem]:
    """Why some layers cannot be combined by a method."""
    problems = []
    for layer in layers:
        ranks = sorted({part.rank for part in layer.parts})
        shapes = sorted({matrix_shape(layer.kind, part) for part in layer.parts})
        if len(shapes) > 1:
            found = f"updates of shapes {', '.join(map(str, shapes))}"
            problems.append(Problem(layer.name, found, "adapters of one base", "Are they of the same model?"))
        elif how.how.of == "factors" and len(ranks) > 1:
            found = f"--method {how.method} of ranks {', '.join(map(str, ranks))}"
            others = ["cat", "svd"] if how.method == "linear" else ["cat", f"{how.method}_svd"]
            remedy = (
                f"Choose {' or '.join(others)}, which take any, or resize each first (--adapters-only --resize-rank)"
            )
            problems.append(Problem(layer.name, found, "one rank, as A and B are combined element by element", remedy))
    return problems


def bias_problem(name: str, how: Combination) -> Problem | None:
    """Why a trained bias of B cannot be combined by a method, which only sums do; None where it can.

    Args:
        name: What the bias, or its layer, is called.
        how: The method.
    """
    if not (how.how.prune or how.how.elects):
        return None
    found = f"--method {how.method} and a trained bias of B"
    return Problem(name, found, "cat, linear or svd, which sum it", "Choose one of these")


def combine_layers(
    layers: Sequence[Layer],
    how: Combination,
    dtype: DType,
    folder: Path,
    budget: Budget,
    progress: Progress,
    *,
    max_memory: int | None = None,
) -> dict[str, Combined]:
    """Combine the updates of each layer.

    Args:
        layers: The layers, to which `layer_problems` has no objection.
        how: The method.
        dtype: The type of A and B.
        folder: An existing folder, where the results lie, in one file, and other files meanwhile.
        budget: How many threads.
        progress: Told how many elements of factors are done.
        max_memory: Bytes of anonymous memory at most, if the user says so.

    Returns:
        Name of the layer to its update.

    Raises:
        InputChangedError: An adapter was written to meanwhile.
        NonFiniteError: NaN or Inf in an adapter, or a value beyond the range of the type.
        ResourceError: No room, or not enough memory for a single layer.
    """
    usual = max((part.rank for layer in layers for part in layer.parts), default=0)
    threads = threads_for(layers, how, budget, max_memory)
    check_scratch(folder, scratch_bytes(layers, how, usual, dtype, threads))
    progress.start(sum(map(_elements, layers)), f"combining ({how.method})")

    def work(number: int) -> Combined:
        done = _combine(layers[number], how, usual, dtype, folder, folder / f"layer-{number}")
        progress.advance(_elements(layers[number]))
        return done

    try:
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads, thread_name_prefix="combine") as pool:
            try:
                combined = list(pool.map(work, range(len(layers))))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        progress.finish()
    # What is written later is read from the files that were made here: nobody looks at the adapters again.
    tensors = [tensor for layer in layers for part in layer.parts for tensor in (part.a, part.b)]
    for source in {source for tensor in tensors for source in files_of(tensor)}:
        check_unchanged(source)
    return {layer.name: done for layer, done in zip(layers, combined, strict=True)}


def _combine(layer: Layer, how: Combination, usual: int, dtype: DType, folder: Path, path: Path) -> Combined:
    """Combine a layer, and keep its A and B in a file."""

    def rounded(values: np.ndarray) -> np.ndarray:
        stored = np.asarray(widen(cast_array(values, dtype)), np.float32)
        if over := count_nonfinite(stored):
            found = f"{over} elements beyond the range of {dtype}"
            raise NonFiniteError(Problem(layer.name, found, "values that it can hold", wider_type(dtype)))
        return stored

    stacks = [layer_matrices(layer.kind, part) for part in layer.parts]
    if any(count_nonfinite(factor) for stack in stacks for matrices in stack for factor in matrices):
        raise NonFiniteError(Problem(layer.name, "NaN or Inf in A or B", "finite values, to be combined"))
    results = []
    for number, matrices in enumerate(zip(*stacks, strict=True)):
        parts = [
            MatrixPart(left, right, part.weight, part.scaling, f"{layer.stream} {part.adapter} {number}")
            for part, (left, right) in zip(layer.parts, matrices, strict=True)
        ]
        try:
            results.append(combine_matrices(parts, how, usual, rounded, folder))
        except np.linalg.LinAlgError as error:
            found = f"products that cannot be decomposed ({error})"
            raise NonFiniteError(Problem(layer.name, found, "values within the range of float32")) from error
    rank = max(result.left.shape[1] for result in results)
    pair = [np.ascontiguousarray(cast_array(values, dtype)) for values in _shaped(layer, results, rank)]
    try:
        with path.open("wb") as file:
            for values in pair:
                file.write(values.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise scratch_failed(folder, error) from error
    source = open_source(path)
    a, b = (
        Stored(dtype, values.shape, (ByteRun(source, offset, values.nbytes),))
        for values, offset in zip(pair, (0, pair[0].nbytes), strict=True)
    )
    return Combined(a, b, _report(layer, results, rank))


def layer_matrices(kind: str, part: Part) -> list[tuple[np.ndarray, np.ndarray]]:
    """Left and right factors, `(out, rank)` and `(rank, in)`: one of each, of experts one of each expert.

    Args:
        kind: As of `Layer`.
        part: The update; both of its tensors are read.
    """
    a, b = (np.asarray(widen(tensor.read_all()), np.float32) for tensor in (part.a, part.b))
    if kind == "expert":
        return list(zip(a, b, strict=True))  # whose weights are (in, out), and B @ A is a @ b
    return [(b.reshape(b.shape[0], part.rank), a.reshape(part.rank, -1))]


def _shaped(layer: Layer, results: Sequence[Factors], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B as the layer's kind has them."""
    lefts = [_widened(result.left, rank, axis=1) for result in results]
    rights = [_widened(result.right, rank, axis=0) for result in results]
    if layer.kind == "expert":
        return np.stack(lefts), np.stack(rights)
    first = layer.parts[0]
    return (
        rights[0].reshape(rank, *first.a.shape[1:]),
        lefts[0].reshape(first.b.shape[0], rank, *first.b.shape[2:]),
    )


def _widened(values: np.ndarray, rank: int, *, axis: int) -> np.ndarray:
    """Zeros behind an expert's factor whose rank is lower than another's."""
    missing = rank - values.shape[axis]
    return np.pad(values, [(0, missing if i == axis else 0) for i in range(2)]) if missing else values


def _report(layer: Layer, results: Sequence[Factors], rank: int) -> CombinedLayer:
    def root(of: Callable[[Factors], float]) -> float:
        return math.sqrt(sum(of(result) ** 2 for result in results))

    norm, sum_norm = root(lambda result: result.norm), root(lambda result: result.sum_norm)
    return CombinedLayer(
        name=layer.name,
        kind=layer.kind,
        adapters=tuple(part.adapter for part in layer.parts),
        ranks=tuple(part.rank for part in layer.parts),
        rank=rank,
        norm=norm,
        energy=min(result.energy for result in results),
        relative_error=root(lambda result: result.error) / norm if norm else 0.0,
        distance_from_sum=root(lambda result: result.sum_distance) / sum_norm if sum_norm else None,
        converged=all(result.converged for result in results),
    )


def _elements(layer: Layer) -> int:
    return sum(part.a.size + part.b.size for part in layer.parts)
