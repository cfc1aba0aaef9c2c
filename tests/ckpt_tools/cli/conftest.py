"""pet-merge, run in the tests' own process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command, Outcome
from merge_cases import factors, llama, mindpet, save

from ckpt_tools.cli.common import run
from ckpt_tools.cli.merge import merge_command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """pet-merge in a folder with `base.ckpt` and `lora.ckpt`: (exit code, stdout, stderr)."""
    save(tmp_path / "base.ckpt", llama())
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            run(merge_command, list(arguments))
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
