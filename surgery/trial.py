"""A process that tries regular expressions, and may end of it: for threads that can have no timer.

`re` holds the interpreter's lock while it works, and lets nothing interrupt it but a signal to Python's main thread: a
thread that tries an endless expression stops all of its process for good. So another process tries it first, under a
timer of the processor's time, whose signal ends that process. It is started when it is needed for the first time, waits
for the next expression, and ends with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

from surgery.errors import Problem, ResourceError

__all__ = ["ends_in_time"]

# A line in for each expression, an empty line out. Signals that are ignored or blocked here would be so there, and an
# interrupt from the terminal reaches both.
_PROGRAM = """
import json, re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGVTALRM})
for line in sys.stdin:
    function, pattern, text, flags, seconds = json.loads(line)
    use = getattr(re.compile(pattern, flags), function)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    use(text)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(flush=True)
"""


def ends_in_time(function: str, pattern: str, text: str, flags: int, seconds: float) -> bool:
    """Whether an expression is done with a text in some time of the processor's. Safe on threads, and behind a fork.

    Args:
        function: `match`, `fullmatch` or `search`.
        pattern: The expression; it compiles.
        text: What it is tried on.
        flags: Those of `re`.
        seconds: The time.

    Raises:
        ResourceError: There is no such process, and none can be started.
    """
    return _TRIALS[0].ends_in_time([function, pattern, text, flags, seconds])


class _Trials:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ends_in_time(self, question: list[str | int | float]) -> bool:
        with self._lock:
            process = self._process or self._start()
            self._process = process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = b""
            if answer:
                return True
            self._process = None
            code = _end(process)
            if code == -signal.SIGVTALRM:
                return False
            raise _no_process(f"one that ended with {code}")

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            command = [sys.executable or "", "-I", "-S", "-W", "ignore", "-c", _PROGRAM]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise _no_process(error.strerror or str(error)) from error

    def close(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> int:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written any more
                pipe.close()
    return process.wait()


def _no_process(found: str) -> ResourceError:
    remedy = "Read the configuration in Python's main thread, which needs no process for it"
    return ResourceError(Problem("regular expressions of the configuration", found, "a process to try them in", remedy))


def _begin_anew() -> None:
    """Leave the process, and the lock that another thread may hold, to the parent of a fork."""
    _FORGOTTEN.append(_TRIALS[0])  # kept: nothing of it may be closed here
    _TRIALS[0] = _Trials()


_TRIALS = [_Trials()]
_FORGOTTEN: list[_Trials] = []
os.register_at_fork(after_in_child=_begin_anew)
atexit.register(lambda: _TRIALS[0].close())
