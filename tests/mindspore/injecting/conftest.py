"""Tests of `inject` beside networks, run on both pairs of packages: `make test` and `make test-classic`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mindspore
import pytest
from networks import IS_CLASSIC, use_mode

# What MindFormers 1.3.2 does not have.
collect_ignore = ["test_inject_parallel_core.py"] if IS_CLASSIC else []


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MindFormers and MindSpore write into the working folder."""
    monkeypatch.chdir(tmp_path)
    use_mode("pynative")
    yield
    mindspore.reset_auto_parallel_context()
