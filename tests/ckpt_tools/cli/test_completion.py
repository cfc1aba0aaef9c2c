"""Shell completion as docs/cli.md sets it up, in a real bash."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder with pet-merge in it, run by this interpreter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "pet-merge"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ckpt_tools.cli.merge "$@"\n')
    script.chmod(0o755)
    return folder


def _run(command: list[str], bin_folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(bin_folder), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed_and_the_exit_code_is_0(shell: str, bin_folder: Path) -> None:
    result = _run(["pet-merge"], bin_folder, _PET_MERGE_COMPLETE=f"{shell}_source")
    assert (result.returncode, result.stderr) == (0, "")
    assert "_PET_MERGE_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("base.ckpt --allow-n", "--allow-nonfinite"),
        ("base.ckpt --dtype b", "bf16"),
        ("base.ckpt --format sa", "safetensors"),
    ],
)
def test_bash_completes_options_and_their_values(line: str, completed: str, bin_folder: Path) -> None:
    program = f"""
        set -e
        eval "$(_PET_MERGE_COMPLETE=bash_source pet-merge)"
        COMP_WORDS=(pet-merge {line}) COMP_CWORD=$(({len(line.split())}))
        _pet_merge_completion pet-merge
        echo "${{COMPREPLY[@]}}"
    """
    result = _run(["bash", "-c", program], bin_folder)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{completed}\n", "")


@pytest.mark.parametrize("line", ["", "base.ckpt ", "base.ckpt -o ", "base.ckpt --config ", "base.ckpt --names "])
def test_paths_are_left_to_the_shell(line: str, bin_folder: Path) -> None:
    words = f"pet-merge {line}x"
    result = _run(
        ["pet-merge"],
        bin_folder,
        _PET_MERGE_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "file,x\n", "")
