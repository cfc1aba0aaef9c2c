"""The commands of a chain: run in this process, in one of their own, or killed on the way and run again."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from commands import environment, run_here
from every_command import COMMANDS
from merge_cases import tree

from chains.oracle import Tally

# Exit codes.
USAGE, MISSING, CORRUPT, MISFIT, DIFFERENT, EXISTS = 2, 3, 4, 5, 6, 8
_INTERRUPTED = 130

HERE, PROCESS, KILLED = "in process", "as processes", "killed and run again"


class WrongOutcomeError(AssertionError):
    """A command ended otherwise than it must, or touched what it must not touch."""


@dataclass
class Figures(Tally):
    """What a soak did.

    Attributes:
        chains: Chains that were run.
        commands: How often each command was run.
        ways: How often in which way.
        refused: How often inputs were refused that had to be.
        steps: How often each kind of step was taken.
    """

    chains: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)


@dataclass
class Shell:
    """Runs commands in a folder, and keeps what a shell would have been told.

    Attributes:
        folder: Where they run.
        rng: What decides how a command is run.
        figures: Where it is counted.
        lines: The commands so far.
    """

    folder: Path
    rng: Random
    figures: Figures
    lines: list[str] = field(default_factory=list)

    def run(self, program: str, *arguments: str, code: int = 0, outputs: tuple[str, ...] = ()) -> str:
        """Run a command, which must end with an exit code and change nothing but its outputs; what it printed.

        Args:
            program: Its name.
            arguments: Its arguments.
            code: The exit code that it must have.
            outputs: The paths that it may write to. With another code than 0 it must leave all as it was.
        """
        self.lines.append(f"{shlex.join([program, *arguments])}  # {code}")
        self.figures.commands[program] += 1
        before = tree(self.folder)
        way = self.rng.choices([HERE, PROCESS, KILLED], [93, 4, 3])[0]
        if way == KILLED and (not outputs or code):
            way = PROCESS
        self.figures.ways[way] += 1
        if way == KILLED:
            self.note("killed at some moment, and run again where it was not done")
            is_done, is_there = self._kill(program, arguments, outputs)
            if is_done:
                self._hold(program, arguments, before, outputs)
                return ""
            # It was killed when it had published its output, and before it had cleared up or published the other one.
            arguments += ("--force",) if is_there and "--force" not in arguments else ()
        found, stdout, stderr = self._here(program, arguments) if way == HERE else self._process(program, arguments)
        if found != code:
            raise WrongOutcomeError(f"{program}: expected exit code {code}, found {found}:\n{stdout}{stderr}")
        self._hold(program, arguments, before, () if code else outputs)
        if code == DIFFERENT:
            return stdout
        if code:
            self.figures.refused[code] += 1
            if "Traceback" in stderr or "error: " not in stderr.lower():
                raise WrongOutcomeError(f"{program}: expected an error message, found {stderr!r}")
        return stdout

    def note(self, line: str) -> None:
        """Say what was done besides commands."""
        self.lines.append(f"# {line}")

    def _hold(self, program: str, arguments: tuple[str, ...], before: dict[str, str], outputs: tuple[str, ...]) -> None:
        """Everything but the outputs is as it was, and nothing hidden is left but the parts of an output."""
        after = tree(self.folder)
        for name in before.keys() | after.keys():
            first = name.split("/")[0]
            is_part = any(first == f".{output}.pet-surgery" for output in outputs)
            is_own = any(first == output or first.startswith(f"{Path(output).stem}.") for output in outputs)
            if not (is_part or is_own) and before.get(name) != after.get(name):
                raise WrongOutcomeError(f"{program} changed {name}: it was {before.get(name)}, it is {after.get(name)}")
        hidden = [name for name in after if ".pet-surgery/" in name and name not in before]
        if hidden and "--ranks" not in arguments:
            raise WrongOutcomeError(f"{program} left {hidden}")

    def _here(self, program: str, arguments: tuple[str, ...]) -> tuple[int, str, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with _working_in(self.folder), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = run_here(COMMANDS[program.removeprefix("pet-")], *arguments)
        gc.enable()  # which a command switches off, as its process is short
        if code == _INTERRUPTED:
            raise KeyboardInterrupt  # it was meant for the soak
        return code, stdout.getvalue(), stderr.getvalue()

    def _process(self, program: str, arguments: tuple[str, ...]) -> tuple[int, str, str]:
        result = subprocess.run(
            self._line(program, arguments),
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return result.returncode, result.stdout, result.stderr

    def _kill(self, program: str, arguments: tuple[str, ...], outputs: tuple[str, ...]) -> tuple[bool, bool]:
        """Start a command and kill it at a random moment; whether it had ended by then, and an output was there."""
        earlier = [path for output in outputs if (path := self.folder / output).exists()]
        hidden = [self.folder / f".{output}.pet-surgery" for output in outputs]
        process = subprocess.Popen(
            self._line(program, arguments),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not any(path.exists() for path in hidden):
            time.sleep(0.0005)
        time.sleep(self.rng.choice([0, 0.002, 0.005, 0.01, 0.02, 0.05]))
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise WrongOutcomeError(f"{program} ended with {process.returncode} before it was killed: {stderr}")
        published = [(self.folder / output).exists() for output in outputs]
        is_clear = not earlier and all(published) and not any(path.exists() for path in hidden)
        return process.returncode == 0 or is_clear, any(published)

    @staticmethod
    def _line(program: str, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", f"ckpt_tools.cli.{program.removeprefix('pet-')}", *arguments]


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
