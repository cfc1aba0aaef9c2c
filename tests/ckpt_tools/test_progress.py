"""The progress that shows nothing."""

from __future__ import annotations

import pytest

from ckpt_tools.progress import SILENT, Progress


def test_silence_takes_every_call_and_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress: Progress = SILENT
    progress.start(100, "writing")
    progress.advance(50)
    progress.finish()
    assert capfd.readouterr() == ("", "")
