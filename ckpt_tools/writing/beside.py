"""Small files that go with an output that is one file: beside it, called after it.

They are put there when the output is complete and before it is published. So whoever sees the output sees them; a run
that fails between the two takes them back, and one that is killed leaves small files that the next run of the same
command replaces.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ckpt_tools.writing.atomic import Workspace, keep_link, sync_folder, write_synced
from ckpt_tools.writing.claims import claim_output
from surgery.errors import OutputExistsError, Problem, UsageError

__all__ = ["check_beside", "placed_beside", "write_file"]


def check_beside(files: Mapping[Path, bytes], inputs: Iterable[Path], *, force: bool) -> None:
    """Make sure that files may go where they are to go: what lies there has the same content, or may be replaced.

    Args:
        files: Path to content.
        inputs: What the user gave, which is never replaced.
        force: Whether other files may be replaced.

    Raises:
        UsageError: One is an input.
        OutputExistsError: Another file lies there and may not be replaced.
    """
    given = [path for path in inputs if path.exists()]
    for path, data in files.items():
        if not os.path.lexists(path):
            continue
        if any(path.exists() and path.samefile(one) for one in given):
            raise UsageError(Problem(f"-o, {path}", "it would be replaced, and is an input", "a path of its own"))
        is_file = path.is_file() and not path.is_symlink()
        if not is_file or (not force and path.read_bytes() != data):
            remedy = "Choose another place with -o, or replace it with --force" if is_file else "Remove it"
            raise OutputExistsError(Problem(str(path), "it exists already", "a free path", remedy))


@contextmanager
def placed_beside(files: Mapping[Path, bytes], workspace: Workspace) -> Iterator[None]:
    """Put files beside an output, each whole or not at all, and publish the output within the block.

    Args:
        files: Path to content.
        workspace: The output's; where the block fails, they are taken back, and what they replaced returns.

    Raises:
        OSError: An I/O call failed.
    """
    if files:
        workspace.beside.mkdir(exist_ok=True)
    parts = {path: workspace.beside / secrets.token_hex(8) for path in files}
    for path, part in parts.items():
        write_synced(part, files[path])
    with ExitStack() as taken_back:
        for path, part in parts.items():
            old = part.with_suffix(".old")
            is_new = not os.path.lexists(path)
            if not is_new and path.is_file():
                keep_link(path, old)
            part.replace(path)
            taken_back.callback(_take_back, path, old, is_new=is_new)
        for folder in dict.fromkeys(path.parent for path in files):
            sync_folder(folder)
        yield
        taken_back.pop_all()  # it is published: they stay


def write_file(path: Path, data: bytes, *, force: bool) -> None:
    """Write one small file, whole or not at all.

    Raises:
        OutputExistsError: It appeared meanwhile, and `force` is not set.
        OutputLockedError: Another run writes it.
        ResourceError: Its folder cannot be written to.
        OSError: An I/O call failed.
    """
    with claim_output(path, secrets.token_hex(32), is_folder=False, force=force) as workspace:
        part = workspace.new_part()
        write_synced(part, data)
        workspace.complete(part, path.name)
        workspace.publish()


def _take_back(path: Path, old: Path, *, is_new: bool) -> None:
    with suppress(OSError):
        if is_new:
            path.unlink()
        elif old.exists():
            old.replace(path)
