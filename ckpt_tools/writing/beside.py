"""Small files that go with an output that is one file: beside it, called after it.

They are written when the output is complete and before it is published. So whoever sees the output sees them; and a run
that is killed between the two leaves small files that the next run of the same command replaces.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from ckpt_tools.writing.atomic import sync_folder
from surgery.errors import OutputExistsError, Problem, UsageError

__all__ = ["check_beside", "write_beside"]


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


def write_beside(files: Mapping[Path, bytes]) -> None:
    """Write files, each whole or not at all.

    Raises:
        OSError: An I/O call failed.
    """
    for path, data in files.items():
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    for folder in dict.fromkeys(path.parent for path in files):
        sync_folder(folder)
