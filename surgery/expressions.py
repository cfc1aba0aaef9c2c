"""Regular expressions of a configuration, tried on names in bounded time.

Python's `re` may need longer than anyone waits: `(a+)+$` doubles its time with every letter of a name that it does not
match. A configuration comes with an adapter, from wherever that comes from. The meaning has to be that of `re`, which
PEFT and MindFormers use, so it is not another engine that sets the bound but a timer of the processor's time, which
interrupts `re`. Python lets its main thread alone have one: elsewhere nothing is bounded.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from surgery.errors import CorruptInputError, Problem

__all__ = ["fullmatch", "match", "search"]

# An honest expression needs microseconds.
_SECONDS = 0.25


class _TooSlowError(Exception):
    pass


def match(pattern: str, text: str) -> re.Match[str] | None:
    """`re.match`.

    Raises:
        CorruptInputError: It takes too long.
    """
    with _bounded(pattern, text):
        return re.match(pattern, text)


def fullmatch(pattern: str, text: str) -> re.Match[str] | None:
    """`re.fullmatch`.

    Raises:
        CorruptInputError: It takes too long.
    """
    with _bounded(pattern, text):
        return re.fullmatch(pattern, text)


def search(pattern: str, text: str, flags: int = 0) -> re.Match[str] | None:
    """`re.search`.

    Raises:
        CorruptInputError: It takes too long.
    """
    with _bounded(pattern, text):
        return re.search(pattern, text, flags)


@contextmanager
def _bounded(pattern: str, text: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGVTALRM, _stop)
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except _TooSlowError:
        found = f"{pattern!r:.200}, which takes longer than {_SECONDS} seconds on the name {text!r:.200}"
        expected = "one without a repetition inside of a repetition"
        raise CorruptInputError(Problem("a regular expression of the configuration", found, expected)) from None
    finally:
        signal.signal(signal.SIGVTALRM, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _TooSlowError
