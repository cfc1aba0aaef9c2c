"""pet-merge, run in the tests' own process."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, Outcome, run_here
from merge_cases import factors, llama, mindpet, save

from ckpt_tools.cli.merge import merge_command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """pet-merge in a folder with `base.ckpt` and `lora.ckpt`: (exit code, stdout, stderr)."""
    save(tmp_path / "base.ckpt", llama())
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        code = run_here(merge_command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
