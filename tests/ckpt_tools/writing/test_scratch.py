"""Temporary folders: gone behind their block, and those of killed runs gone with the next."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from ckpt_tools.writing.scratch import scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_folder_is_gone_behind_its_block_with_all_that_is_in_it(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_folder() as folder:
            (folder / "x").write_bytes(b"x")
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes_and_what_another_run_holds_or_never_was_its_stays(tmp_path: Path) -> None:
    (tmp_path / "pet-surgery-dead" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pet-surgery-link").symlink_to(tmp_path / "elsewhere")
    with scratch_folder() as held, scratch_folder() as folder:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {held.name, folder.name, "elsewhere", "pet-surgery-link"}
