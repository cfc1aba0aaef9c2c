"""Expressions mean what `re` says they mean, and none takes longer than anyone waits."""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from surgery import expressions, trial
from surgery.config import LoraConfig, Selection
from surgery.errors import CorruptInputError, ResourceError
from surgery.targets import selects

LAYER = "model.layers.0.self_attn." + "a" * 40
ENDLESS = r"(.*\.)?(a+)+$b"


def call(use: Callable[[], object]) -> object:
    return use()


def call_in_thread(use: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(use).result()


anywhere = pytest.mark.parametrize("run", [call, call_in_thread], ids=["main thread", "another thread"])


@anywhere
@pytest.mark.parametrize("how", ["match", "fullmatch", "search"])
@pytest.mark.parametrize("pattern", ["a", ".*a", "b", r".*\.(q|a+)$", "(?P<x>m).*"])
def test_an_expression_finds_what_re_finds(run: Callable[..., re.Match[str]], how: str, pattern: str) -> None:
    ours = run(lambda: getattr(expressions, how)(pattern, LAYER))
    theirs = getattr(re, how)(pattern, LAYER)
    assert (ours and (ours.span(), ours.groupdict())) == (theirs and (theirs.span(), theirs.groupdict()))


@anywhere
@pytest.mark.parametrize(
    "use",
    [
        lambda: selects(LoraConfig("c", target_modules=ENDLESS), LAYER),
        lambda: selects(LoraConfig("c", target_modules=("q",), exclude_modules=ENDLESS), LAYER),
        lambda: selects(LoraConfig("c", target_modules=("q",), modules_to_save=("(a+)+b",)), LAYER),
        lambda: selects(LoraConfig("c", target_modules="(a+)+$b", selection=Selection.MINDFORMERS), LAYER),
        lambda: selects(LoraConfig("c", target_modules="(a+)+$b", selection=Selection.MINDFORMERS_PYNATIVE), LAYER),
        lambda: LoraConfig("c", rank_pattern={"(a+)+b": 4}).rank_of(LAYER),
        lambda: LoraConfig("c", alpha_pattern={"(a+)+b": 4}).alpha_of(LAYER),
    ],
)
def test_an_expression_that_would_take_years_is_corrupt(run: Callable[..., object], use: Callable[[], object]) -> None:
    handler = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(CorruptInputError, match="takes longer"):
        run(use)
    assert signal.getsignal(signal.SIGVTALRM) == handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_timer_of_the_callers_goes_on() -> None:
    handler = signal.signal(signal.SIGVTALRM, lambda number, frame: None)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 1000, 500)
        assert expressions.match("a", "a")
        left, interval = signal.getitimer(signal.ITIMER_VIRTUAL)
        assert left > 900
        assert interval == 500
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def test_many_threads_try_expressions_at_once() -> None:
    names = [f"{LAYER}{'b' * (number % 2)}" for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: expressions.fullmatch(r".*b", name) is not None, names)
    assert list(found) == [name.endswith("b") for name in names]


def test_a_limit_holds_where_the_signal_is_ignored_and_blocked() -> None:
    trial._TRIALS[0].close()
    handler = signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGVTALRM})
    try:
        with pytest.raises(CorruptInputError, match="takes longer"):
            call_in_thread(lambda: expressions.match(ENDLESS, LAYER))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGVTALRM, handler)


def test_a_fork_has_a_process_of_its_own() -> None:
    assert call_in_thread(lambda: expressions.match("a", "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork among threads: the very case
        child = os.fork()
    if not child:
        status = 1
        try:
            found: list[object] = []
            thread = threading.Thread(target=lambda: found.append(expressions.match("b", "b")))
            thread.start()
            thread.join()
            status = 0 if found[0] else 1
        finally:
            trial._TRIALS[0].close()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert call_in_thread(lambda: expressions.match("a", "a"))


@pytest.mark.parametrize("executable", [None, "", "/nowhere/python", "/bin/false"])
def test_a_thread_without_a_process_says_so_and_tries_nothing(
    monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    trial._TRIALS[0].close()
    monkeypatch.setattr("sys.executable", executable)
    with pytest.raises(ResourceError, match="main thread"):
        call_in_thread(lambda: expressions.match("a", "a"))
    monkeypatch.undo()
    assert call_in_thread(lambda: expressions.match("a", "a"))
