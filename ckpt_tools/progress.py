"""Progress is an object handed in: the operations report to it, the command line decides what is shown."""

from __future__ import annotations

from typing import Protocol

__all__ = ["SILENT", "Progress", "Silent"]


class Progress(Protocol):
    """What is told how far the writing is. Calls may come from any thread."""

    def start(self, total_bytes: int, what: str) -> None:
        """A stretch of work begins: so many bytes, and what is done with them."""

    def advance(self, done_bytes: int) -> None:
        """So many more bytes are done."""

    def finish(self) -> None:
        """The stretch of work ended, well or not."""


class Silent:
    """Shows nothing."""

    def start(self, total_bytes: int, what: str) -> None:
        """Ignore."""

    def advance(self, done_bytes: int) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


SILENT = Silent()
