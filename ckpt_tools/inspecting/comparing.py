"""Two checkpoints compared tensor by tensor: in stretches, on threads, in memory that no size changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from threadpoolctl import threadpool_limits

from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.inspecting.differences import Difference, add_up, difference_of, has_numbers
from ckpt_tools.progress import Progress
from ckpt_tools.renaming import rename_tensors
from ckpt_tools.reports import ComparedTensor
from ckpt_tools.tensors.lazy import LazyTensor, Region, bands
from surgery.errors import Problem, UsageError
from surgery.naming import classify
from surgery.translation import naming_of

__all__ = ["compare_tensors", "translated", "unlike_names"]

# What both stretches, their values in float64 and the masks take of a thread stays some ten megabytes.
_STRETCH_ELEMENTS = 2**18
_WAITING_PER_THREAD = 4

_Stretch = tuple[int, Region]


def translated(
    first: Mapping[str, LazyTensor], other: Mapping[str, LazyTensor], names: str
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Both under names that can be compared.

    Args:
        first: Name to tensor.
        other: The other's.
        names: `keep`; `hf` or `mindformers`, which translates both; or a JSON file of the first's
            names and the other's.

    Raises:
        PetSurgeryError: As of `rename_tensors`.
    """
    if not names:
        raise UsageError(Problem("--names", "an empty path", "keep, hf, mindformers or a JSON file"))
    renamed, _ = rename_tensors(list(first.items()), names)
    theirs: Sequence[NamedTensor] = list(other.items())
    if names in ("hf", "mindformers"):
        theirs, _ = rename_tensors(theirs, names)
    return dict(renamed), dict(theirs)


def unlike_names(first: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """A warning where the two are spelled by two conventions."""
    kinds = naming_of(first), naming_of(other)
    if None in kinds or kinds[0] == kinds[1]:
        return ()
    return ("one has names of Hugging Face, the other of MindFormers: --names hf compares them by one spelling",)


def compare_tensors(
    first: Mapping[str, LazyTensor],
    other: Mapping[str, LazyTensor],
    *,
    threads: int,
    progress: Progress,
) -> tuple[ComparedTensor, ...]:
    """Compare what two checkpoints both have.

    Args:
        first: Name to tensor; its order is that of the result.
        other: The other's.
        threads: How many threads read and compare.
        progress: Told how far it is, in bytes of the first.

    Raises:
        ResourceError: An I/O call failed.
        InputChangedError: A file changed while it was read.
    """
    pairs = [(name, tensor, other[name]) for name, tensor in first.items() if name in other]
    fitting = [number for number, (_, left, right) in enumerate(pairs) if _are_comparable(left, right)]
    sums: dict[int, list[Difference]] = {number: [] for number in fitting}

    def compare(stretch: _Stretch) -> Difference:
        number, region = stretch
        _, left, right = pairs[number]
        numbers = has_numbers(left.dtype) and has_numbers(right.dtype)
        values = left.read(region)
        difference = difference_of(values, right.read(region), numbers=numbers)
        progress.advance(values.nbytes)
        return difference

    stretches = ((number, region) for number in fitting for region in bands(pairs[number][1].shape, _STRETCH_ELEMENTS))
    progress.start(sum(pairs[number][1].nbytes for number in fitting), "comparing")
    try:
        for (number, _), difference in _on_threads(compare, stretches, threads):
            sums[number].append(difference)
    finally:
        progress.finish()
    return tuple(
        _compared(name, left, right, add_up(sums[number]) if number in sums else None)
        for number, (name, left, right) in enumerate(pairs)
    )


def _are_comparable(left: LazyTensor, right: LazyTensor) -> bool:
    if left.shape != right.shape:
        return False
    return left.dtype == right.dtype or (has_numbers(left.dtype) and has_numbers(right.dtype))


def _compared(name: str, left: LazyTensor, right: LazyTensor, sums: Difference | None) -> ComparedTensor:
    plain = ComparedTensor(
        name=name,
        layer=classify(name).layer,
        shape=left.shape,
        other_shape=right.shape,
        dtype=left.dtype.name,
        other_dtype=right.dtype.name,
        equal_bits=sums is not None and not sums.differing and left.dtype == right.dtype,
        elements=left.size,
    )
    if sums is None:
        return plain
    if not (has_numbers(left.dtype) and has_numbers(right.dtype)):
        return replace(plain, differing=sums.differing)
    return replace(
        plain,
        differing=sums.differing,
        norm=sums.norm,
        difference_norm=sums.difference_norm,
        relative_difference=sums.difference_norm / sums.norm if sums.norm else None,
        largest_difference=sums.largest,
        nonfinite=sums.nonfinite,
    )


def _on_threads(
    work: Callable[[_Stretch], Difference], stretches: Iterable[_Stretch], threads: int
) -> Iterator[tuple[_Stretch, Difference]]:
    """The results in the order of the stretches, of which a few are under way at a time."""
    waiting: deque[tuple[_Stretch, Future[Difference]]] = deque()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads, thread_name_prefix="compare") as pool:
        try:
            for stretch in stretches:
                waiting.append((stretch, pool.submit(work, stretch)))
                if len(waiting) >= _WAITING_PER_THREAD * threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
