"""The commands as a shell runs them: in a process of their own, on the interpreter and the sources under test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

import ckpt_tools
from ckpt_tools.cli.common import run

Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]
"""A command in the tests' own process: arguments to (exit code, stdout, stderr)."""

PET_MERGE = (sys.executable, "-m", "ckpt_tools.cli.merge")
_SOURCES = str(Path(ckpt_tools.__file__).parents[1])


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which the sources under test are found, and a warning of Python's is an error."""
    path = os.pathsep.join(filter(None, (_SOURCES, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **(changes or {})}


def pet_merge(
    *arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run pet-merge to its end."""
    command = [*PET_MERGE, *map(str, arguments)]
    captured = {"capture_output": True} if options.keys().isdisjoint({"stdout", "stderr"}) else {}
    return subprocess.run(command, env=environment(env), text=True, timeout=120, check=False, **{**captured, **options})


def run_here(command: click.Command, *arguments: str | Path) -> int:
    """Run a command in the tests' own process, whose signal handlers it leaves as they were; its exit code."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        with pytest.raises(SystemExit) as caught:
            run(command, [*map(str, arguments)])
        return int(caught.value.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start_pet_merge(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start pet-merge; its stderr is a pipe."""
    command = [*PET_MERGE, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options
    )


def in_shell(script: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `"$@"` is pet-merge with its arguments."""
    command = ["bash", "-c", script, "bash", *PET_MERGE, *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), text=True, timeout=120, check=False, capture_output=True, **options
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for something that a running process brings about; it must not have ended by then."""
    while not condition():
        assert process.poll() is None, f"it ended before: {process.communicate()[1]}"
        time.sleep(0.001)
