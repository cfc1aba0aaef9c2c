"""Run Python code in a process of its own whose system calls are seen, and may be killed, failed or cut short.

The kernel's own means (ptrace), as strace uses them; but calls are counted over all threads of the process, by whether
they touch a folder, and a short write is one that the kernel really did. Nothing of the code under test is replaced.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Call", "Ended", "Fail", "Kill", "Shorten", "in_process", "run_traced"]

_SEIZE, _INTERRUPT, _SYSCALL, _GETREGS, _SETREGS, _SYSCALL_INFO = 0x4206, 0x4207, 24, 12, 13, 0x420E
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x100000  # tell syscalls apart, follow forks and threads, and die with the tracer
_WALL = 0x40000000
_ENTRY, _EXIT = 1, 2
_RAX, _RDX, _R8, _ORIG_RAX = 10, 12, 9, 15
_AT_FDCWD = -100

# Where the arguments are: "f" a descriptor, "p" a path, "d" a folder's descriptor and then a path.
_WRITING = {
    1: ("write", "f0"), 18: ("pwrite64", "f0"), 20: ("writev", "f0"), 296: ("pwritev", "f0"), 328: ("pwritev2", "f0"),
    77: ("ftruncate", "f0"), 285: ("fallocate", "f0"), 74: ("fsync", "f0"), 75: ("fdatasync", "f0"),
    277: ("sync_file_range", "f0"), 326: ("copy_file_range", "f2"), 40: ("sendfile", "f0"), 73: ("flock", "f0"),
    91: ("fchmod", "f0"), 2: ("open", "p0"), 257: ("openat", "d0"), 83: ("mkdir", "p0"), 258: ("mkdirat", "d0"),
    84: ("rmdir", "p0"), 87: ("unlink", "p0"), 263: ("unlinkat", "d0"), 82: ("rename", "p0p1"),
    264: ("renameat", "d0d2"), 316: ("renameat2", "d0d2"), 86: ("link", "p0p1"), 265: ("linkat", "d0d2"),
    88: ("symlink", "p1"), 76: ("truncate", "p0"), 90: ("chmod", "p0"), 280: ("utimensat", "d0"),
}  # fmt: skip
_READING = {
    0: ("read", "f0"), 17: ("pread64", "f0"), 295: ("preadv", "f0"), 9: ("mmap", "f4"), 5: ("fstat", "f0"),
    8: ("lseek", "f0"), 217: ("getdents64", "f0"), 3: ("close", "f0"), 4: ("stat", "p0"), 6: ("lstat", "p0"),
    262: ("newfstatat", "d0"), 332: ("statx", "d0"), 21: ("access", "p0"), 89: ("readlink", "p0"), 16: ("ioctl", "f0"),
}  # fmt: skip
_LENGTHS = {"write": _RDX, "pwrite64": _RDX, "copy_file_range": _R8}


@dataclass(frozen=True)
class Call:
    """A system call that touches the watched folder.

    Attributes:
        number: Which of them it is, from 1.
        name: Its name.
        paths: The paths that it names, or that its descriptor has.
        flags: Of one that opens a file: how.
        length: Of one that writes: how many bytes are asked for.
        descriptor: Of one that takes a descriptor: the file, as a path that can be opened.
    """

    number: int
    name: str
    paths: tuple[str, ...]
    flags: int = 0
    length: int = 0
    descriptor: str = ""


@dataclass(frozen=True)
class Kill:
    """End the process here, with SIGKILL, before the call is done."""


@dataclass(frozen=True)
class Fail:
    """Let the call fail, without its effect."""

    code: int


@dataclass(frozen=True)
class Shorten:
    """Let the call write as many bytes at most."""

    length: int


Action = Kill | Fail | Shorten | None


@dataclass
class Ended:
    """How a traced process ended.

    Attributes:
        code: Its exit code; negative: the signal that killed it.
        err: What it said on stderr.
        calls: The calls that touched the folder, in order.
    """

    code: int
    err: str
    calls: list[Call] = field(default_factory=list)


def in_process(target: Callable[[], object], log: Path, *, wait_for: int = -1) -> int:
    """Fork a process that runs the target, its output in a file; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        if wait_for >= 0:
            os.read(wait_for, 1)
        null, file = os.open(os.devnull, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(null, 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        try:
            target()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_traced(
    target: Callable[[], object],
    root: Path,
    log: Path,
    act: Callable[[Call], Action] = lambda call: None,
    *,
    after: Callable[[Call], None] = lambda call: None,
    with_reading: bool = False,
) -> Ended:
    """Run a target in a process of its own, and decide over each call that touches a folder.

    Args:
        target: What to run; its exit code is that of a SystemExit, or 0.
        root: The folder.
        log: Where the process's output goes.
        act: Asked before each call that touches it.
        after: Told of each that succeeded.
        with_reading: Whether calls that only look or read count too.
    """
    return _Tracer(root, act, after, with_reading).run(target, log)


class _Tracer:
    def __init__(
        self, root: Path, act: Callable[[Call], Action], after: Callable[[Call], None], with_reading: bool
    ) -> None:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise RuntimeError("These tests stop processes at system calls: they need Linux on x86-64")
        self._root, self._act, self._after = os.path.realpath(root), act, after
        self._known = {**_READING, **_WRITING} if with_reading else _WRITING
        self._calls: list[Call] = []
        self._inside: dict[int, tuple[Call, Action]] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long

    def run(self, target: Callable[[], object], log: Path) -> Ended:
        ready, go = os.pipe()
        pid = in_process(target, log, wait_for=ready)
        self._ptrace(_SEIZE, pid, 0, _OPTIONS)
        self._ptrace(_INTERRUPT, pid)
        is_first = True
        while True:
            tid, status = os.waitpid(-1, _WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if tid == pid:
                    break
                continue
            event, number = status >> 16, os.WSTOPSIG(status)
            passed = 0
            if number == signal.SIGTRAP | 0x80:
                self._at_call(tid, pid)
            elif not event:
                passed = number
            self._continue(tid, passed)
            if is_first and tid == pid:
                os.write(go, b"x")
                is_first = False
        os.close(ready)
        os.close(go)
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return Ended(code, log.read_text(errors="replace") if log.exists() else "", self._calls)

    def _at_call(self, tid: int, pid: int) -> None:
        buffer = ctypes.create_string_buffer(128)
        if self._libc.ptrace(_SYSCALL_INFO, tid, 128, ctypes.addressof(buffer)) < 0:
            return  # killed meanwhile
        kind = buffer.raw[0]
        if kind == _ENTRY:
            number, *arguments = struct.unpack_from("=Q6Q", buffer.raw, 24)
            call = self._recognise(tid, number, arguments)
            if call is None:
                return
            self._calls.append(call)
            action = self._act(call)
            self._inside[tid] = (call, action)
            if isinstance(action, Kill):
                os.kill(pid, signal.SIGKILL)
            elif isinstance(action, Fail):
                self._set(tid, _ORIG_RAX, -1)
            elif isinstance(action, Shorten):
                self._set(tid, _LENGTHS[call.name], action.length)
        elif kind == _EXIT and tid in self._inside:
            call, action = self._inside.pop(tid)
            if isinstance(action, Fail):
                self._set(tid, _RAX, -action.code)
            elif not buffer.raw[32]:
                self._after(call)

    def _recognise(self, tid: int, number: int, arguments: list[int]) -> Call | None:
        if number not in self._known:
            return None
        name, places = self._known[number]
        paths, descriptor = [], ""
        for kind, at in zip(places[::2], map(int, places[1::2]), strict=True):
            if kind == "f":
                descriptor = f"/proc/{tid}/fd/{ctypes.c_int(arguments[at]).value}"
                paths.append(_link(descriptor))
            else:
                folder = _AT_FDCWD if kind == "p" else ctypes.c_int(arguments[at]).value
                path = self._text(tid, arguments[at + (kind == "d")])
                start = f"/proc/{tid}/cwd" if folder == _AT_FDCWD else f"/proc/{tid}/fd/{folder}"
                paths.append(os.path.normpath(Path(_link(start)) / path))
        if not any(path == self._root or path.startswith(self._root + "/") for path in paths):
            return None
        flags = arguments[2] if name == "openat" else arguments[1] if name == "open" else 0
        length = arguments[4] if name == "copy_file_range" else arguments[2] if name in _LENGTHS else 0
        return Call(len(self._calls) + 1, name, tuple(paths), flags, length, descriptor)

    def _text(self, tid: int, address: int) -> str:
        if not address:
            return ""
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            found = b""
            while b"\0" not in found:
                memory.seek(address + len(found))
                # Up to the end of the page, as the next one may be none of the process's.
                piece = memory.read(min(256, 4096 - (address + len(found)) % 4096))
                if not piece:
                    break
                found += piece
        return os.fsdecode(found.split(b"\0")[0])

    def _set(self, tid: int, register: int, value: int) -> None:
        registers = (ctypes.c_ulonglong * 27)()
        self._ptrace(_GETREGS, tid, 0, ctypes.addressof(registers))
        registers[register] = value & 0xFFFFFFFFFFFFFFFF
        self._ptrace(_SETREGS, tid, 0, ctypes.addressof(registers))

    def _continue(self, tid: int, number: int) -> None:
        self._libc.ptrace(_SYSCALL, tid, 0, number)  # which fails where the process was killed meanwhile

    def _ptrace(self, request: int, tid: int, address: int = 0, data: int = 0) -> None:
        if self._libc.ptrace(request, tid, address, data) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"ptrace: {os.strerror(code)}; these tests need a machine that allows it")


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""
