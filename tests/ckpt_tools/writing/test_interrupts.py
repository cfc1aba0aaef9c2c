"""Signals that arrive while an output is written: held back until the run can end cleanly, and never lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from ckpt_tools.writing.interrupts import hold_interrupts

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.signal(number, terminate) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interruption_waits_for_the_point_where_it_is_raised(number: int) -> None:
    with hold_interrupts() as held:
        held.raise_pending()
        assert not held.pending
        signal.raise_signal(number)
        assert held.pending
        with pytest.raises(KeyboardInterrupt, match="nothing was written"):
            held.raise_pending()


def test_an_interruption_that_nobody_asked_for_is_raised_at_the_end() -> None:
    def run() -> None:
        with hold_interrupts() as held:
            signal.raise_signal(signal.SIGINT)
            held.consequence = "the output is complete"

    with pytest.raises(KeyboardInterrupt, match="the output is complete"):
        run()


def test_an_error_of_the_block_goes_before_an_interruption() -> None:
    def fail() -> None:
        with hold_interrupts():
            signal.raise_signal(signal.SIGINT)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()


def test_handlers_are_put_back() -> None:
    with hold_interrupts() as held:
        assert signal.getsignal(signal.SIGTERM) is not terminate
    assert all(signal.getsignal(number) is terminate for number in NUMBERS)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert not held.pending


def test_a_handler_of_the_callers_that_raises_nothing_interrupts_nothing() -> None:
    calls = []
    signal.signal(signal.SIGTERM, lambda signum, frame: calls.append(signum))
    with hold_interrupts() as held:
        signal.raise_signal(signal.SIGTERM)
        assert not held.pending
    assert calls == [signal.SIGTERM]


def test_what_another_handler_raises_is_raised_unchanged() -> None:
    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, leave)
    with pytest.raises(SystemExit, match=r"^3$"), hold_interrupts():
        signal.raise_signal(signal.SIGTERM)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with hold_interrupts() as held:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not held.pending
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_than_the_main_one_hold_nothing_back() -> None:
    seen = []

    def work() -> None:
        with hold_interrupts() as held:
            seen.append((held.pending, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, terminate)]
