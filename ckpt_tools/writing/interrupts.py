"""Interruptions (Ctrl-C, SIGTERM) that wait for a point where a run can end cleanly.

Python raises KeyboardInterrupt between any two instructions of the main thread: also between taking a lock and the
`try` that gives it back, or half-way through removing a folder.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["NOTHING_WRITTEN", "HeldInterrupts", "hold_interrupts"]

NOTHING_WRITTEN = "nothing was written"
"""What an interruption means until an output is published."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HeldInterrupts:
    """What signal handlers raised meanwhile; the handlers themselves ran at once."""

    def __init__(self) -> None:
        self._raised: BaseException | None = None

    @property
    def pending(self) -> bool:
        """Whether the run should end; cheap, and for any thread."""
        return self._raised is not None

    def raise_pending(self, consequence: str) -> None:
        """Raise what is held back, if something is.

        Args:
            consequence: What the interruption means for the user; the argument of a KeyboardInterrupt that has none.
        """
        raised, self._raised = self._raised, None
        if raised is None:
            return
        if isinstance(raised, KeyboardInterrupt) and not raised.args:
            raised.args = (consequence,)
        raise raised

    def _guard(self, handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def guarded(signum: int, frame: FrameType | None) -> None:
            try:
                handler(signum, frame)
            except BaseException as error:
                self._raised = error

        return guarded


@contextmanager
def hold_interrupts(consequence: str) -> Iterator[HeldInterrupts]:
    """Hold back what the handlers of SIGINT, SIGTERM and SIGHUP raise, until `raise_pending` or the end of the block.

    Signals without a handler in Python keep their effect. In other threads than the main one this does nothing, as
    Python runs no handlers there.

    Args:
        consequence: As of `raise_pending`, for what is still held back when the block ends without an error.
    """
    held = HeldInterrupts()
    before = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number, handler in before.items():
        signal.signal(number, held._guard(handler))
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    held.raise_pending(consequence)
