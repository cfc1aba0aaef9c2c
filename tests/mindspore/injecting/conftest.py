"""Tests of `inject` beside the networks that MindFormers, MindPet and MindSpore build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mindspore
import pytest
from networks import use_mode


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MindFormers and MindSpore write into the working folder."""
    monkeypatch.chdir(tmp_path)
    use_mode("pynative")
    yield
    mindspore.reset_auto_parallel_context()
