"""The front door: any path to a checkpoint, opened by what it holds."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ckpt_tools.formats.index import INDEX_SUFFIX, NAME_MAP
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.formats.recognise import read_file
from ckpt_tools.formats.sharded import read_folder
from surgery.errors import InputMissingError, Problem

__all__ = ["open_checkpoint"]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the headers of a checkpoint: a `.ckpt`, a safetensors file, a folder of them, or a folder's index.

    The format is recognised by content; the name only decides for a file that is damaged beyond recognition. An index
    stands for its folder, which is then the checkpoint's `path`.

    Raises:
        InputMissingError: The path, or a shard, is not there.
        CorruptInputError: Something breaks the rules of its format.
        EncryptedInputError: A file is encrypted.
        UnknownFormatError: It is of no kind that is read; the error says what to do.
    """
    path = Path(path)
    try:
        is_there = path.exists()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputMissingError(
            Problem(str(path), reason, "a checkpoint", "Check the path and its permissions")
        ) from error
    if not is_there:
        raise InputMissingError(_not_there(path))
    if path.is_dir():
        return read_folder(path)
    if path.name.lower().endswith(INDEX_SUFFIX) or path.name == NAME_MAP:
        return read_folder(path.parent, index_file=path.name)
    return read_file(path)


def _not_there(path: Path) -> Problem:
    """What is missing, and the names beside it that come near."""
    if path.is_symlink():
        return Problem(str(path), f"a link to {path.readlink()}, which is not there", "a checkpoint", "Mend the link")
    while not path.parent.exists():
        path = path.parent
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names)
    likely = " or ".join(str(path.parent / name) for name in near)
    return Problem(
        str(path), "no such file or folder", "a checkpoint", f"Is it {likely}?" if near else "Check the path"
    )
