"""Small files beside an output: whole or not at all, and never in the place of an input or of somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_tools.writing.beside import check_beside, placed_beside, write_file
from ckpt_tools.writing.claims import claim_output
from surgery.errors import OutputExistsError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def place(folder: Path, *names: str, fails: bool = False) -> None:
    """Put files beside an output, which is then published, or fails to be."""
    with claim_output(folder / "out", "d", is_folder=False, force=True) as workspace:
        part = workspace.new_part()
        part.write_bytes(b"new")
        workspace.complete(part, "out")
        with placed_beside({folder / name: b"new" for name in names}, workspace):
            if fails:
                raise ValueError("failed")
            workspace.publish()


def test_files_are_placed_and_nothing_else_is_left(tmp_path: Path) -> None:
    place(tmp_path, "a.json", "b.json")
    assert contents(tmp_path) == {"a.json": b"new", "b.json": b"new", "out": b"new"}


def test_an_output_that_is_not_published_takes_them_back_and_what_they_replaced_returns(tmp_path: Path) -> None:
    before = {"a.json": b"old", "out": b"old"}
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="failed"):
        place(tmp_path, "a.json", "b.json", fails=True)
    assert contents(tmp_path) == before


def test_one_that_cannot_be_placed_takes_the_others_back(tmp_path: Path) -> None:
    (tmp_path / "b.json").mkdir()
    with pytest.raises(OSError, match=r"b\.json"):
        place(tmp_path, "a.json", "b.json")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_file_by_itself_replaces_another_by_force_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "page.html", b"1", force=False)
    with pytest.raises(OutputExistsError):
        write_file(tmp_path / "page.html", b"2", force=False)
    assert contents(tmp_path) == {"page.html": b"1"}
    write_file(tmp_path / "page.html", b"2", force=True)
    assert contents(tmp_path) == {"page.html": b"2"}


def test_what_a_killed_run_began_goes_with_the_next(tmp_path: Path) -> None:
    hidden = tmp_path / ".page.html.pet-surgery" / "parts" / "dead"
    hidden.mkdir(parents=True)
    (hidden / "half").write_bytes(b"<html")
    write_file(tmp_path / "page.html", b"1", force=False)
    assert contents(tmp_path) == {"page.html": b"1"}


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
