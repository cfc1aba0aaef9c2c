"""What a reader may do with bytes that nobody vouches for: read them, or refuse them; in bounded time and memory.

Fuzzing and the replay of its corpus share this. Whatever else happens is a find: another exception, a refusal with an
exit code that the reader has no use for or with a message that fills the screen, too much time, too much memory.
"""

from __future__ import annotations

import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fuzz_target import Target

from ckpt_tools.tensors.sources import close_sources
from surgery.errors import PetSurgeryError

__all__ = ["Find", "examine", "limit_memory"]

CPU_SECONDS = 5
"""For one input of some kilobytes, on a slow machine, with instrumentation; of the processor, whatever else runs."""

MEMORY_BYTES = 256 * 2**20
"""Beyond what the process has when the limit is set."""

_MESSAGE_CHARACTERS = 20_000


class TooSlowError(BaseException):
    """The time is over. No `except Exception` of what is tested may catch it."""


@dataclass(frozen=True)
class Find:
    """What a reader should not have done.

    Attributes:
        signature: The same for all inputs that show the same fault.
        text: What happened, with its traceback.
    """

    signature: str
    text: str


def limit_memory(nbytes: int = MEMORY_BYTES) -> None:
    """Let this process have so much more memory than it has, and no more: a MemoryError is a find."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def examine(target: Target, folder: Path, data: bytes) -> Find | None:
    """Let a reader have an input.

    Args:
        target: The reader.
        folder: One that `target.prepare` was called with.
        data: The input.
    """
    try:
        with _limited_time():
            target.read(folder, data)
    except PetSurgeryError as error:
        if error.exit_code not in target.exit_codes:
            return _find(error, f"exit code {error.exit_code}")
        if len(str(error)) > _MESSAGE_CHARACTERS:
            return _find(error, "a message of very many characters")
    except (Exception, SystemExit, TooSlowError) as error:
        return _find(error)
    finally:
        close_sources()
    return None


def _find(error: BaseException, what: str = "") -> Find:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
    signature = " ".join(filter(None, (type(error).__name__, what, "in", place)))
    return Find(signature, "".join(traceback.format_exception(error))[-20_000:])


def _is_ours(path: str) -> bool:
    return any(part in Path(path).parts for part in ("ckpt_tools", "surgery"))


@contextmanager
def _limited_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {CPU_SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
