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

__all__ = ["HeldInterrupts", "hold_interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HeldInterrupts:
    """What signal handlers raised meanwhile; the handlers themselves ran at once.

    Args:
        consequence: What an interruption means for the user; the argument of a KeyboardInterrupt that has none.
    """

    def __init__(self, consequence: str = "nothing was written") -> None:
        self.consequence = consequence
        self._raised: BaseException | None = None

    @property
    def pending(self) -> bool:
        """Whether the run should end; cheap, and for any thread."""
        return self._raised is not None

    def raise_pending(self) -> None:
        """Raise what is held back, if something is."""
        raised, self._raised = self._raised, None
        if raised is None:
            return
        if isinstance(raised, KeyboardInterrupt) and not raised.args:
            raised.args = (self.consequence,)
        raise raised

    def _guard(self, handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def guarded(signum: int, frame: FrameType | None) -> None:
            try:
                handler(signum, frame)
            except BaseException as error:
                self._raised = error

        return guarded


@contextmanager
def hold_interrupts() -> Iterator[HeldInterrupts]:
    """Hold back what the handlers of SIGINT, SIGTERM and SIGHUP raise, until `raise_pending` or the end of the block.

    Signals without a handler in Python keep their effect. In other threads than the main one this does nothing, as
    Python runs no handlers there. Whoever holds them says what an interruption means by then.
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
    held.raise_pending()
