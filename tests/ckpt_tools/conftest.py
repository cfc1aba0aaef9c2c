"""A merge from a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_cases import PAIRS, Merge, mindpet, write

from ckpt_tools import merge


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """Merge `tmp_path`'s adapter into a base there, from an empty working folder beside them."""
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda base, **options: merge(tmp_path / base, tmp_path / "lora.ckpt", alpha=8, **options)
