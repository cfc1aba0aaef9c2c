"""The progress bar of a terminal: rate and time left."""

from __future__ import annotations

import threading
from typing import Any

from tqdm import tqdm

__all__ = ["Bar"]


class Bar:
    """Shows bytes done, rate and time left on stderr."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: tqdm[Any] | None = None

    def start(self, total_bytes: int, what: str) -> None:
        """Show a bar for so many bytes."""
        self.finish()
        self._bar = tqdm(total=total_bytes, desc=what, unit="B", unit_scale=True, leave=False, delay=0.3)

    def advance(self, done_bytes: int) -> None:
        """So many more bytes are done."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(done_bytes)

    def finish(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
