"""How much is held in memory: a band of a tensor a thread, whatever the size of the model."""

from __future__ import annotations

import os
from dataclasses import dataclass

from surgery.errors import Problem, ResourceError, UsageError

__all__ = ["Budget", "default_threads", "make_budget"]

# The interpreter, numpy and the headers of a large model.
_BASE_BYTES = 96 * 2**20

# A thread's band: its bytes as they are stored and as they are written, its factors, its scratch tiles.
_BYTES_PER_BAND_ELEMENT = 12

_LARGEST_BAND = 4 * 2**20
_SMALLEST_BAND = 2**17
_DEFAULT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Budget:
    """How many threads work, and on how much at a time.

    Attributes:
        threads: Threads that read, compute and write.
        band_elements: Elements of a tensor that a thread holds at a time.
    """

    threads: int = 1
    band_elements: int = 2**20

    @property
    def peak_bytes(self) -> int:
        """The anonymous memory that is expected at most."""
        return _BASE_BYTES + self.threads * self.band_elements * _BYTES_PER_BAND_ELEMENT


def default_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_budget(threads: int | None = None, max_memory: int | None = None) -> Budget:
    """Threads and bands that stay within a memory limit.

    Args:
        threads: Threads; by default one for each core.
        max_memory: Bytes of anonymous memory at most; by default 256 MiB, exceeded only where many threads at the
            smallest band need more.

    Raises:
        UsageError: Fewer threads than one.
        ResourceError: The limit leaves no room for a single thread.
    """
    wanted = default_threads() if threads is None else threads
    if wanted < 1:
        raise UsageError(Problem("--threads", str(wanted), "at least 1"))
    room = (_DEFAULT_BYTES if max_memory is None else max_memory) - _BASE_BYTES
    smallest = _SMALLEST_BAND * _BYTES_PER_BAND_ELEMENT
    if max_memory is not None:
        if room < smallest:
            least = Budget(1, _SMALLEST_BAND).peak_bytes
            raise ResourceError(Problem("--max-memory", f"{max_memory} bytes", f"at least {least} bytes"))
        wanted = min(wanted, room // smallest)
    band = min(max(room // (wanted * _BYTES_PER_BAND_ELEMENT), _SMALLEST_BAND), _LARGEST_BAND)
    return Budget(wanted, band)
