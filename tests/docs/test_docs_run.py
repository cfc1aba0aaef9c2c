"""Every example of README.md and docs/ is run as it stands; CONTRIBUTING.md tells how to write one."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
from docs_samples import write_docs_samples
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

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


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's commands, run by this interpreter, installed or not."""
    folder = tmp_path_factory.mktemp("bin")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        program = f"import sys; from {module} import {function}; sys.exit({function}())"
        _write_script(folder / name, f"exec {shlex.quote(sys.executable)} -c '{program}' \"$@\"")
    _write_script(folder / "python", f'exec {shlex.quote(sys.executable)} "$@"')
    return folder


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_example_runs(path: Path, tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_docs_samples(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    document: Document = SYBIL.parse(path)
    try:
        for example in document:
            example.evaluate()
    except unittest.SkipTest as skip:  # with a reason, sybil would skip the rest of the page too
        pytest.fail(f"{path.name}: `<!-- skip: ... -->` may not have a reason: {skip}")


def test_readme_has_examples_that_run() -> None:
    assert len(list(SYBIL.parse(ROOT / "README.md"))) >= 3


@pytest.mark.parametrize(
    ("session", "failure"),
    [
        ("$ echo 1\n1\n$ echo 2\n2", None),
        ("$ printf 'a\\nb\\n'\na\n...", None),
        ("$ false", "exit code 1"),
        ("$ (echo no; exit 5)\nno\n$ echo $?\n5", None),
        ("$ echo 1\n2", "expected:\n2"),
        ("$ echo \\\n    1\n1", None),
    ],
)
def test_a_session_is_held_to_what_it_prints(session: str, failure: str | None, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```console\n{session}\n```\n", encoding="utf-8")
    (example,) = SYBIL.parse(page)
    if failure is None:
        example.evaluate()
    else:
        with pytest.raises(Exception, match=failure):
            example.evaluate()


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_link_to_a_file_finds_it(path: Path) -> None:
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
