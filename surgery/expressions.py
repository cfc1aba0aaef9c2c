"""Regular expressions of a configuration, tried on names in bounded time.

Python's `re` may need longer than anyone waits: `(a+)+$` doubles its time with every letter of a name that it does not
match. A configuration comes with an adapter, from wherever that comes from. The meaning has to be that of `re`, which
PEFT and MindFormers use, so it is not another engine that sets the bound but a timer of the processor's time, which
interrupts `re`. Python lets its main thread alone have one. What another thread asks for is tried in a process of its
own first (`surgery.trial`): what comes to an end there in time does so here too.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from functools import lru_cache
from types import FrameType
from typing import NoReturn, TypeVar

from surgery.errors import CorruptInputError, Problem

__all__ = ["fullmatch", "match", "search"]

T = TypeVar("T")

# An honest expression needs microseconds.
_SECONDS = 0.25


class _TooSlowError(Exception):
    pass


def match(pattern: str, text: str) -> re.Match[str] | None:
    """`re.match`.

    Raises:
        CorruptInputError: It takes too long.
        ResourceError: Outside of the main thread: no process could be started to try it in.
    """
    return _bounded("match", pattern, text)


def fullmatch(pattern: str, text: str) -> re.Match[str] | None:
    """`re.fullmatch`.

    Raises:
        CorruptInputError: It takes too long.
        ResourceError: Outside of the main thread: no process could be started to try it in.
    """
    return _bounded("fullmatch", pattern, text)


def search(pattern: str, text: str, flags: int = 0) -> re.Match[str] | None:
    """`re.search`.

    Raises:
        CorruptInputError: It takes too long.
        ResourceError: Outside of the main thread: no process could be started to try it in.
    """
    return _bounded("search", pattern, text, flags)


# `re` itself keeps 512: a configuration may have an expression for each of some thousand layers.
_compiled = lru_cache(maxsize=2**14)(re.compile)


def _bounded(function: str, pattern: str, text: str, flags: int = 0) -> re.Match[str] | None:
    use: Callable[[str], re.Match[str] | None] = getattr(_compiled(pattern, flags), function)
    if threading.current_thread() is threading.main_thread():
        try:
            return _timed(use, text)
        except _TooSlowError:
            pass
    else:
        from surgery.trial import ends_in_time  # 10 ms that the main thread need not spend

        if ends_in_time(function, pattern, text, int(flags), _SECONDS):
            return use(text)
    found = f"{pattern!r:.200}, which takes longer than {_SECONDS} seconds on the name {text!r:.200}"
    expected = "one without a repetition inside of a repetition"
    raise CorruptInputError(Problem("a regular expression of the configuration", found, expected))


def _timed(use: Callable[[str], T], text: str) -> T:
    """What a function returns of a text, unless it takes too long; a timer of the caller's goes on afterwards."""
    handler = signal.signal(signal.SIGVTALRM, _stop)
    timer = (0.0, 0.0)
    try:
        try:
            timer = signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
            return use(text)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, handler)
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _TooSlowError
