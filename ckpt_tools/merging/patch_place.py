"""Whether a merge can have a patch that undoes it, and whether that may go where it is to go."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ckpt_tools.patching import PatchDraft, is_patch, read_patch
from ckpt_tools.writing.destination import destination
from surgery.errors import InputChangedError, OutputExistsError, PetSurgeryError, Problem, UsageError

__all__ = ["check_patch_options", "check_patch_place", "is_left_over"]

PathLike = str | os.PathLike[str]


def check_patch_options(path: PathLike, executor: str, ranks: object) -> Path:
    """The patch's path, where a patch can be made at all.

    Raises:
        UsageError: The output is written in parts or on other machines.
    """
    if not os.fspath(path):
        raise UsageError(Problem("--unmerge-patch", "an empty path", "a path for the patch"))
    if ranks is not None:
        found = "--ranks, which leaves the output to several runs"
        raise UsageError(Problem("--unmerge-patch", found, "one run that writes all of the output", "Leave one out"))
    if executor != "local":
        # Another processor's BLAS may round a sum to other bits than those that the patch is made for.
        found = f"--executor {executor}"
        raise UsageError(Problem("--unmerge-patch", found, "an output that this machine writes", "Leave one out"))
    return destination(path)


def check_patch_place(path: Path, outputs: Iterable[Path], inputs: Iterable[Path], *, force: bool) -> None:
    """Make sure that the patch's path is free, or holds an earlier patch that may be replaced.

    Args:
        path: Where the patch goes.
        outputs: Where the merged model goes, and what goes beside it.
        inputs: What the user gave, and the files that are read.
        force: Whether an existing patch may be replaced.

    Raises:
        UsageError: It is, or lies in, the output or an input.
        OutputExistsError: There is something already, and it may not be replaced.
    """
    option, place = f"--unmerge-patch {path}", path.resolve()
    if any(output.resolve() in (place, *place.parents) for output in outputs):
        raise UsageError(Problem(option, "a path that is, or lies in, the output", "a path of its own"))
    for given in inputs:
        if given.resolve() in (place, *(place.parents if given.is_dir() else ())):
            raise UsageError(Problem(option, f"a path that is, or lies in, the input {given}", "a path of its own"))
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file() or not _is_patch(path):
        remedy = "Remove it yourself, or choose another path"
        raise OutputExistsError(Problem(option, "something that is no patch", "an earlier patch to replace", remedy))
    if not force:
        remedy = "Choose another, or replace it with --force"
        raise OutputExistsError(Problem(option, "it exists already", "a free path", remedy))


def _is_patch(path: Path) -> bool:
    try:
        return is_patch(path)
    except InputChangedError:
        return is_patch(path)  # another run replaced it meanwhile


def is_left_over(draft: PatchDraft, output: Path) -> bool:
    """Whether a run of this very merge was killed between publishing its patch and its output: the patch may go."""
    if os.path.lexists(output) or not draft.path.is_file():
        return False
    try:
        return read_patch(draft.path).facts == draft.facts
    except PetSurgeryError:
        return False
