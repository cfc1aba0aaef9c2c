"""What fuzzing takes for a find, and what it lets pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import fuzz_limits
import pytest
from commands import environment
from fuzz_limits import examine
from fuzz_target import Target

from surgery.errors import CorruptInputError, MismatchError, PetSurgeryError, Problem


def reader(behave: Callable[[], object]) -> Target:
    def read(folder: Path, data: bytes) -> None:
        behave()

    return Target(read, list, frozenset({4}))


def refuse(error: PetSurgeryError) -> Callable[[], NoReturn]:
    def behave() -> NoReturn:
        raise error

    return behave


def test_reading_and_refusing_are_no_finds(tmp_path: Path) -> None:
    assert examine(reader(lambda: 1), tmp_path, b"") is None
    assert examine(reader(refuse(CorruptInputError(Problem("x", "damage")))), tmp_path, b"") is None


@pytest.mark.parametrize(
    ("behave", "signature"),
    [
        (lambda: {}["x"], "KeyError"),
        (lambda: sys.exit(1), "SystemExit"),
        (refuse(MismatchError(Problem("x", "a misfit"))), "MismatchError exit code 5"),
        (refuse(CorruptInputError(Problem(f"{n}" * 999, "x") for n in range(99))), "CorruptInputError a message"),
    ],
)
def test_whatever_else_a_reader_does_is_a_find(tmp_path: Path, behave: Callable[[], object], signature: str) -> None:
    find = examine(reader(behave), tmp_path, b"")
    assert find is not None
    assert find.signature.startswith(signature)


def test_an_input_that_takes_too_long_is_a_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_limits, "CPU_SECONDS", 0.05)

    def behave() -> None:
        while True:
            try:
                while True:
                    pass
            except Exception:  # noqa: PERF203 - as a reader may have one
                continue

    find = examine(reader(behave), tmp_path, b"")
    assert find is not None
    assert "TooSlowError" in find.signature


def test_an_input_that_takes_too_much_memory_is_a_find(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fuzz_limits import examine, limit_memory;"
        "from fuzz_target import Target; limit_memory(2**26);"
        "print(examine(Target(lambda f, d: bytes(2**28), lambda: [], frozenset()), Path(), b'').signature)"
    )
    support = Path(__file__).parents[1] / "support"
    path = f"{support}:{environment()['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({"PYTHONPATH": path}), text=True, capture_output=True, check=True
    )
    assert done.stdout.startswith("MemoryError")
