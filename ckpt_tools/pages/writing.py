"""Pages on the disk: checked before there is anything to write, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ckpt_tools.formats.index import INDEX_SUFFIX
from ckpt_tools.pages.contents import content_of
from ckpt_tools.pages.extra import require_html_extra
from ckpt_tools.pages.rendering import render
from ckpt_tools.reports.base import Report
from ckpt_tools.sizes import format_size
from ckpt_tools.writing.beside import write_file
from ckpt_tools.writing.destination import PART_FOLDER, free_bytes
from ckpt_tools.writing.leftovers import sweep_published
from surgery.errors import OutputExistsError, Problem, ResourceError, UsageError

__all__ = ["check_page", "write_page"]

_SUFFIXES = (".html", ".htm")

# A page without anything in it.
_LEAST_BYTES = 32 * 1024


def check_page(
    path: str | os.PathLike[str], paths: Iterable[str | os.PathLike[str]] = (), *, force: bool = False
) -> None:
    """Make sure that a page can be made and may be written, before the work that it is to tell of.

    Args:
        path: Where the page goes; it ends in `.html`, so that no mistyped option replaces a checkpoint.
        paths: The inputs and outputs of the operation, with the files in them: the page may neither replace one, under
            whatever name, nor become a part of one.
        force: Whether an existing file may be replaced.

    Raises:
        MissingExtraError: What draws pages is not installed.
        UsageError: The path is no place for a page.
        OutputExistsError: There is something already, and it may not be replaced.
        ResourceError: The folder may not be written to.
    """
    require_html_extra()
    if not os.fspath(path):
        raise UsageError(Problem("--html", "an empty path", f"a path that ends in {_SUFFIXES[0]}"))
    page = Path(path)
    where = f"--html {page}"
    if page.suffix.lower() not in _SUFFIXES:
        raise UsageError(Problem(where, "another suffix", f"a path that ends in {_SUFFIXES[0]}"))
    if not page.parent.is_dir():
        raise UsageError(Problem(where, "its folder does not exist", remedy=f"Make it: mkdir -p {page.parent}"))
    place = page.parent.resolve() / page.name
    for other in map(Path, paths):
        taken = other if place == other.resolve() else _same_file(page, other)
        if taken is not None:
            raise UsageError(Problem(where, f"it is {taken}, an input or the output", "a path of its own"))
        folder = _folder_of(other)
        if folder is not None and any(folder.samefile(one) for one in _wholes(place.parent)):
            raise UsageError(Problem(where, f"it would become a part of {folder}", "another folder"))
    _check_free(page, force=force)
    if not os.access(page.parent, os.W_OK | os.X_OK):
        raise ResourceError(Problem(where, "its folder may not be written to", remedy="Choose another place"))
    free = free_bytes(page)
    if free < _LEAST_BYTES:
        found, expected = f"{format_size(free)} free", f"room for {format_size(_LEAST_BYTES)} at least"
        raise ResourceError(Problem(where, found, expected, "Free some room, or choose another place"))


def write_page(report: Report, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write the page of a report: one file, to be opened in a browser.

    The same report gives the same bytes, as long as the strategy files that it names are there and unchanged.

    Args:
        report: What an operation returned.
        path: Where the page goes; it ends in `.html`.
        force: Whether an existing file may be replaced.

    Raises:
        MissingExtraError: What draws pages is not installed.
        UsageError: The path is no place for a page.
        OutputExistsError: There is something already, and it may not be replaced.
        ResourceError: The page could not be written.
    """
    check_page(path, force=force)
    page = Path(path)
    data = render(report, content_of(report))
    _check_free(page, force=force)
    try:
        write_file(page, data, force=force)
    except OSError as error:
        found = f"the page could not be written: {(error.strerror or str(error)).lower()}"
        raise ResourceError(Problem(str(page), found, remedy="What the report tells of is not affected")) from error


def _folder_of(path: Path) -> Path | None:
    """The folder whose files are read, or replaced; an index stands for that of its shards."""
    if path.name.endswith(INDEX_SUFFIX):
        return path.parent
    return path if path.is_dir() else None


def _same_file(page: Path, other: Path) -> Path | None:
    """The file that a page already is: a path, or one of the files of a folder."""
    if not page.exists():
        return None
    files = (other,) if (folder := _folder_of(other)) is None else _files_in(folder)
    return next((file for file in files if file.exists() and file.samefile(page)), None)


def _files_in(folder: Path) -> Iterator[Path]:
    for path, _, names in os.walk(folder):
        yield from (Path(path, name) for name in names)


def _wholes(folder: Path) -> Iterator[Path]:
    """What a file in a folder is a part of: of ranks' folders, and of iterations', also of those above them."""
    yield folder
    while PART_FOLDER.fullmatch(folder.name):
        folder = folder.parent
        yield folder


def _check_free(page: Path, *, force: bool) -> None:
    if not os.path.lexists(page):
        return
    sweep_published(page)
    is_file = page.is_file() and not page.is_symlink()
    if not is_file:
        raise OutputExistsError(Problem(str(page), "a folder or a link", "a free path", "Remove it"))
    if not force:
        remedy = "Choose another with --html, or replace it with --force"
        raise OutputExistsError(Problem(str(page), "it exists already", "a free path", remedy))
