"""Threads and bands stay within the memory that is allowed."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.writing.memory import Budget, default_threads, make_budget
from surgery.errors import ResourceError, UsageError

LEAST = Budget(1, 2**17).peak_bytes


@settings(deadline=None)
@given(st.none() | st.integers(1, 300), st.integers(LEAST, 2**40))
def test_a_limit_is_kept_and_threads_go_before_it_is_broken(threads: int | None, limit: int) -> None:
    budget = make_budget(threads, limit)
    assert budget.peak_bytes <= limit
    assert 1 <= budget.threads <= (threads or default_threads())
    assert 2**17 <= budget.band_elements <= 4 * 2**20


@settings(deadline=None)
@given(st.integers(1, 300))
def test_without_a_limit_every_thread_works(threads: int) -> None:
    budget = make_budget(threads)
    assert budget.threads == threads
    assert budget.peak_bytes <= max(256 * 2**20, Budget(threads, 2**17).peak_bytes)


def test_more_memory_never_means_less_work_at_a_time() -> None:
    budgets = [make_budget(4, limit) for limit in range(LEAST, 2**29, 2**20)]
    assert [b.threads for b in budgets] == sorted(b.threads for b in budgets)
    held = [b.threads * b.band_elements for b in budgets]
    # A thread's rounding at the most.
    assert all(after >= before - 4 for before, after in itertools.pairwise(held))


@pytest.mark.parametrize("limit", [0, 1, 2**20, LEAST - 1])
def test_too_little_memory_is_refused_with_what_would_do(limit: int) -> None:
    with pytest.raises(ResourceError, match=f"--max-memory: expected at least {LEAST} bytes, found {limit} bytes"):
        make_budget(2, limit)
    assert make_budget(2, LEAST).threads == 1


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_threads_than_one_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"--threads: expected at least 1, found {threads}"):
        make_budget(threads)


def test_by_default_a_thread_works_on_each_core_that_may_be_used() -> None:
    assert make_budget().threads == default_threads() == len(os.sched_getaffinity(0))
