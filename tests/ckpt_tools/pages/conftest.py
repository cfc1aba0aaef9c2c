"""Reports of real runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_cases import factors, llama, mindpet, save

from ckpt_tools import MergeReport, merge


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MergeReport:
    """A merge in the working folder, with nothing to look at."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "base.ckpt", llama())
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    return merge("base.ckpt", "lora.ckpt", alpha=8, output="merged.ckpt")
