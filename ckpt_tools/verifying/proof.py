"""The proof itself: every expected tensor beside what was found, in stretches, on threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from threadpoolctl import threadpool_limits

from ckpt_tools.progress import Progress
from ckpt_tools.reports import Offender, VerifiedWeight
from ckpt_tools.tensors.lazy import LazyTensor, Region, region_shape
from ckpt_tools.verifying.comparing import Measured, compare_cast, compare_fold, compare_same
from ckpt_tools.verifying.diagnosis import fitted, judge_fold, judge_plain, pulls
from ckpt_tools.verifying.exact import ExactFold
from ckpt_tools.verifying.matching import Expected
from ckpt_tools.verifying.rounding import unit_roundoff
from ckpt_tools.verifying.sampling import choose
from ckpt_tools.writing.memory import Budget

__all__ = ["Proof", "Terms", "prove"]

Compare = Callable[[Region], Measured]

_JOBS_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Terms:
    """What a verification asks.

    Attributes:
        strict: Hold weights to sums in float32, rounded once.
        max_ulp: How far a weight may be, in units in the last place; None for the bound of each element.
        sample: The share of each tensor that is read, above 0 to 1.
        seed: What the sample is drawn by.
    """

    strict: bool = False
    max_ulp: float | None = None
    sample: float = 1.0
    seed: int = 0


@dataclass(slots=True)
class Proof:
    """What was found.

    Attributes:
        weights: Every weight that adapters change or bring.
        equal: Tensors with the base's bytes.
        cast: Tensors that are the base's, rounded to another type.
        offenders: What is not as it must be.
        elements: Elements of all tensors.
        compared: Elements that were compared.
        stretches: Stretches of all tensors.
    """

    weights: list[VerifiedWeight] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    cast: list[str] = field(default_factory=list)
    offenders: list[Offender] = field(default_factory=list)
    elements: int = 0
    compared: int = 0
    stretches: int = 0


@dataclass(slots=True)
class _Job:
    """A tensor, how it is compared, and where."""

    one: Expected
    found: LazyTensor
    compare: Compare
    regions: list[Region]
    fold: ExactFold | None
    is_cast: bool


def prove(
    expected: Sequence[Expected],
    found: Mapping[str, LazyTensor],
    states: Sequence[tuple[str, LazyTensor]],
    base: Mapping[str, LazyTensor],
    terms: Terms,
    budget: Budget,
    progress: Progress,
) -> Proof:
    """Compare tensors whose names, shapes and types fit.

    Args:
        expected: What must be there.
        found: What is.
        states: Training states that are there, which must be the base's.
        base: The base's tensors.
        terms: What is asked.
        budget: Threads, and elements of a stretch.
        progress: Told how many bytes were compared.
    """
    proof = Proof()
    wanted = [*expected, *(Expected(name, name, base[name]) for name, _ in states)]
    jobs = [_job(one, found[one.name], terms, budget, proof) for one in wanted]
    progress.start(sum(_bytes(job, region) for job in jobs for region in job.regions), "verifying")
    try:
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(budget.threads, thread_name_prefix="verify") as pool:
            try:
                # Tensor by tensor, so that few results wait; the regions of some ahead keep all threads at work.
                for job, results in _ahead(pool, jobs, progress):
                    _conclude(job, results, terms, proof)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        progress.finish()
    return proof


def _ahead(pool: ThreadPoolExecutor, jobs: Sequence[_Job], progress: Progress) -> Iterator[tuple[_Job, list[Measured]]]:
    """Each job with what its regions gave, in order."""

    def run(job: _Job, region: Region) -> Measured:
        measured = job.compare(region)
        progress.advance(_bytes(job, region))
        return measured

    waiting: deque[tuple[_Job, list[Future[Measured]]]] = deque()
    for job in jobs:
        waiting.append((job, [pool.submit(run, job, region) for region in job.regions]))
        if len(waiting) > _JOBS_AHEAD:
            first, futures = waiting.popleft()
            yield first, [future.result() for future in futures]
    for job, futures in waiting:
        yield job, [future.result() for future in futures]


def _job(one: Expected, found: LazyTensor, terms: Terms, budget: Budget, proof: Proof) -> _Job:
    fold: ExactFold | None = None
    compare: Compare
    before = one.base if one.fold is None else one.fold.weight
    is_cast = before.dtype != found.dtype
    shape = one.base.shape
    if one.fold is not None and one.fold.is_updated:
        fold = ExactFold(one.fold, found.dtype, terms.strict)
        compare, shape = partial(compare_fold, fold, found, max_ulp=terms.max_ulp), fold.shape
    elif is_cast:
        compare = partial(compare_cast, before, found)
    else:
        compare = partial(compare_same, before, found)
    regions, count = choose(one.name, shape, terms.sample, terms.seed, budget.band_elements)
    proof.stretches += count
    proof.elements += one.base.size
    return _Job(one, found, compare, regions, fold, is_cast)


def _bytes(job: _Job, region: Region) -> int:
    size = job.found.dtype.itemsize
    for length in region_shape(region):
        size *= length
    return size


def _conclude(job: _Job, results: Sequence[Measured], terms: Terms, proof: Proof) -> None:
    measured = Measured()
    for result in results:
        measured.add(result)
    proof.compared += measured.elements
    one = job.one
    is_wrong = measured.wrong > 0
    if job.fold is not None:
        coarse = max((job.fold.dtype, one.base.dtype), key=unit_roundoff)
        is_wrong = is_wrong or (terms.max_ulp is None and pulls(measured, coarse))
        if is_wrong:
            assert one.fold is not None
            proof.offenders.append(judge_fold(one.name, one.fold.uses, job.fold, job.found, measured))
    elif is_wrong:
        proof.offenders.append(judge_plain(one.name, measured, job.found.dtype, is_cast=job.is_cast))
    if one.fold is not None:
        proof.weights.append(_weight(job, measured))
    elif not is_wrong:
        (proof.cast if job.is_cast else proof.equal).append(one.name)


def _weight(job: _Job, measured: Measured) -> VerifiedWeight:
    one, is_updated = job.one, job.fold is not None
    assert one.fold is not None
    elements = max(measured.elements, 1)
    change = (measured.delta_square / measured.before_square) ** 0.5 if measured.before_square else None
    index = measured.worst_at
    if index is not None and len(index) != len(one.base.shape):
        index = None  # a convolution's kernel, which was compared as a matrix
    return VerifiedWeight(
        name=one.name,
        base_name=one.base_name,
        shape=one.base.shape,
        dtype=job.found.dtype.name,
        adapters=tuple(one.fold.uses),
        elements=measured.elements,
        beyond=measured.wrong,
        error_ulp=measured.worst if is_updated else None,
        error_at=index if is_updated else None,
        error_of_limit=measured.of_limit if is_updated else None,
        unchanged_share=measured.as_before / elements if is_updated else None,
        swamped_share=measured.swamped / elements if is_updated else None,
        relative_delta=change if is_updated else None,
        fitted=fitted(measured) if is_updated else None,
    )
