"""Small files beside an output: whole or not at all, and never in the place of an input or of somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_tools.writing.beside import check_beside, write_beside
from surgery.errors import OutputExistsError, UsageError


def test_files_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_beside({tmp_path / "a.json": b"1", tmp_path / "b.json": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"1", "b.json": b"2"}


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match=r"a\.json"):
        write_beside({tmp_path / "a.json": b"1"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_an_interrupted_run_left_may_stay(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"1")
    check_beside({tmp_path / "a.json": b"1", tmp_path / "b.json": b"2"}, [], force=False)


def test_another_content_is_replaced_by_force_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"other")
    with pytest.raises(OutputExistsError, match="--force"):
        check_beside({tmp_path / "a.json": b"1"}, [], force=False)
    check_beside({tmp_path / "a.json": b"1"}, [], force=True)


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / "a.json").mkdir()
    else:
        (tmp_path / "a.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputExistsError, match="Remove it"):
        check_beside({tmp_path / "a.json": b"1"}, [], force=True)


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"1")
    with pytest.raises(UsageError, match="is an input"):
        check_beside({tmp_path / "a.json": b"1"}, [tmp_path / "a.json"], force=True)
