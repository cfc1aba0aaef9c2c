"""How the documentation's examples are run: a page's blocks in one folder, with the project's commands."""

from __future__ import annotations

import doctest
import os
import shlex
import subprocess
import sys
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from docs_samples import write_docs_samples
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
# Pages whose examples need MindSpore: tests/mindspore runs them.
OF_NETWORKS = (ROOT / "docs" / "adapters.md",)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def run_script(example: Example) -> str | None:
    """A ```sh block: bash must get through all of it. What it prints is not looked at."""
    run = _bash(f"set -euo pipefail\n{example.parsed}")
    return None if run.returncode == 0 else f"exit code {run.returncode}:\n{run.stdout}"


def run_session(example: Example) -> str | None:
    """A ```console block: each `$` line prints what follows it, where ... stands for anything.

    With nothing after it, a command must succeed. Otherwise it may fail, as an example of an error message does.
    """
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    code = 0
    for part in f"\n{example.parsed}".split("\n$ ")[1:]:
        command, _, expected = part.partition("\n")
        while command.endswith("\\"):
            line, _, expected = expected.partition("\n")
            command += f"\n{line}"
        run = _bash(f"(exit {code})\n{command}")  # so that `echo $?` tells the exit code of the command before it
        code = run.returncode
        if expected.strip() and not checker.check_output(expected, run.stdout, flags):
            return f"$ {command}\nexpected:\n{expected}\nprinted:\n{run.stdout}"
        if not expected.strip() and code != 0:
            return f"$ {command}\nexit code {code}:\n{run.stdout}"
    return None


def _write_script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def _bash(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


SYBIL = Sybil(
    parsers=[
        SkipParser(),
        PythonCodeBlockParser(),
        CodeBlockParser("sh", run_script),
        CodeBlockParser("console", run_session),
    ]
)


def write_commands(folder: Path) -> Path:
    """A folder with the project's commands, run by this interpreter, installed or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        program = f"import sys; from {module} import {function}; sys.exit({function}())"
        _write_script(folder / name, f"exec {shlex.quote(sys.executable)} -c '{program}' \"$@\"")
    _write_script(folder / "python", f'exec {shlex.quote(sys.executable)} "$@"')
    return folder


@contextmanager
def environment(folder: Path, commands: Path) -> Iterator[None]:
    """The samples' folder as working folder, and the commands on the path."""
    write_docs_samples(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", os.pathsep.join([str(commands), os.environ["PATH"]]))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("COLUMNS", "100")
        patch.setenv("PYTHONWARNINGS", "error")
        yield


def run_page(path: Path, folder: Path, commands: Path) -> None:
    """Run every example of a page."""
    document: Document = SYBIL.parse(path)
    with environment(folder, commands):
        try:
            for example in document:
                example.evaluate()
        except unittest.SkipTest as skip:  # with a reason, sybil would skip the rest of the page too
            pytest.fail(f"{path.name}: `<!-- skip: ... -->` may not have a reason: {skip}")
