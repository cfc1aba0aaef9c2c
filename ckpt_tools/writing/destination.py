"""Whether an output may go where it is to go: not onto or into an input, nor in the place of what is no checkpoint."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from ckpt_tools.sizes import format_size
from ckpt_tools.tensors.sources import Source
from ckpt_tools.writing.leftovers import left_bytes, refuse_taken
from ckpt_tools.writing.manifest import is_manifest
from ckpt_tools.writing.plan import Plan
from surgery.errors import OutputExistsError, Problem, ResourceError, UsageError

__all__ = ["PART_FOLDER", "check_destination", "check_room", "destination", "free_bytes", "nearest_folder"]

_WEIGHTS = (".safetensors", ".ckpt")
_RANK_FOLDER = re.compile(r"rank_\d+")
_ITERATION_FOLDER = re.compile(r"iteration_\d+")
PART_FOLDER = re.compile(rf"{_RANK_FOLDER.pattern}|{_ITERATION_FOLDER.pattern}")
"""The name of a folder whose files are a part of a checkpoint that lies above it."""


def destination(output: str | os.PathLike[str]) -> Path:
    """The path that a user gave for an output; `.` and `..` get the names that they stand for.

    Raises:
        UsageError: It is empty.
    """
    if not os.fspath(output):
        raise UsageError(Problem("-o", "an empty path", "a path for the output"))
    path = Path(output)
    return path.resolve() if path.name in ("", "..") else path


def check_destination(plan: Plan, inputs: Iterable[Path], *, force: bool, also_read: Iterable[Source] = ()) -> None:
    """Make sure that the output's path is free, or may be replaced.

    Args:
        plan: What is to be written; the files it reads are inputs too.
        inputs: The files and folders that the user gave.
        force: Whether an existing output may be replaced.
        also_read: Files that are read for the plan's tensors before it is executed.

    Raises:
        UsageError: The output is an input, under whatever name, or a folder that holds one, or would become a part of
            one.
        OutputExistsError: There is something already, and it may not be replaced.
    """
    output = plan.output
    inputs = list(inputs)
    sources = {*plan.sources(), *also_read}
    paths = [*inputs, *_folders_read(sources, inputs), *(Path(source.path) for source in sources)]
    for path in paths:
        is_member = not plan.is_folder or PART_FOLDER.fullmatch(output.name)
        if path.is_dir() and is_member and output.parent.exists() and path.samefile(output.parent):
            raise UsageError(Problem(f"-o {output}", f"it would become a part of the input {path}", "another folder"))
        if output.exists() and _is_or_holds(output, path):
            raise UsageError(Problem(f"-o {output}", f"it is, or holds, the input {path}", "a path of its own"))
    _check_manifest_beside(plan, paths, force=force)
    if not force:
        refuse_taken(output)
    elif os.path.lexists(output):
        _check_replaceable(plan)


def nearest_folder(output: Path) -> Path:
    """The folder that an output is made in, or, where it is missing, the nearest above it that is there."""
    return next(path for path in output.absolute().parents if path.exists())


def free_bytes(output: Path) -> int:
    """The room on the disk that an output goes to."""
    return shutil.disk_usage(output if output.exists() else nearest_folder(output)).free


def check_room(*outputs: tuple[Plan, int]) -> None:
    """Make sure that outputs fit onto their disks, together where they share one.

    What a killed run left of an output is not asked for twice: it is taken over, or removed before anything is written.

    Args:
        *outputs: Each with its bytes.

    Raises:
        ResourceError: They do not.
    """
    disks: dict[int, list[tuple[Plan, int]]] = {}
    for plan, nbytes in outputs:
        disks.setdefault(nearest_folder(plan.output).stat().st_dev, []).append((plan, nbytes))
    for shared in disks.values():
        needed = sum(nbytes for _, nbytes in shared)
        free = free_bytes(shared[0][0].output)
        if needed > free + sum(left_bytes(plan.output, (entry.name for entry in plan.entries)) for plan, _ in shared):
            places = ", ".join(str(plan.output) for plan, _ in shared)
            found, expected = f"{format_size(free)} free", f"room for {format_size(needed)}"
            remedy = "Free some room, or choose another place with -o"
            raise ResourceError(
                Problem(places, found, expected, f"{remedy} or --remainder" if len(shared) > 1 else remedy)
            )


def _folders_read(sources: Iterable[Source], inputs: Iterable[Path]) -> list[Path]:
    """The folders of files that are read and that the user did not name: those of ranks, and that of an index."""
    named = {(info.st_dev, info.st_ino) for info in (path.stat() for path in inputs if path.exists())}
    unnamed = (source for source in sources if (source.device, source.inode) not in named)
    return list(dict.fromkeys(Path(source.path).parent for source in unnamed))


def _is_or_holds(output: Path, path: Path) -> bool:
    # Compared as files and not as paths: a folder that is mounted in two places has two, and no link between them.
    resolved = path.resolve()
    return any(one.samefile(output) for one in (resolved, *resolved.parents))


def _check_manifest_beside(plan: Plan, inputs: Iterable[Path], *, force: bool) -> None:
    """The manifest of an output that is not there any more, or is replaced, may go; no other file may."""
    if plan.beside is None:
        return
    path = plan.places[-1]
    if not os.path.lexists(path):
        return
    if any(one.exists() and path.exists() and path.samefile(one) for one in inputs):
        raise UsageError(Problem(f"-o, {path}", "it would be replaced, and is an input", "a path of its own"))
    if not path.is_file() or path.is_symlink() or not (force or is_manifest(path)):
        raise OutputExistsError(Problem(str(path), "it exists already", "a free path", "Choose another place with -o"))


def _check_replaceable(plan: Plan) -> None:
    """`--force` is for outputs of an earlier run: it must not take a mistyped path's content away."""
    output = plan.output
    is_folder = output.is_dir() and not output.is_symlink()
    if is_folder != plan.is_folder:
        found, expected = ("a folder", "a file") if is_folder else ("a file or a link", "a folder")
        raise _kept(output, f"{found}, where the output is {expected}")
    if not is_folder:
        return
    entries = list(output.iterdir())
    ranks = [entry for entry in entries if _RANK_FOLDER.fullmatch(entry.name) and entry.is_dir()]
    iterations = [entry for entry in entries if _ITERATION_FOLDER.fullmatch(entry.name) and entry.is_dir()]
    if len(iterations) == 1:  # a folder of several is a training's
        ranks += iterations
    # SLoRA's table lies above the folder of its adapter: what is to be written has the same folder.
    own = {entry.name.split("/")[0] for entry in plan.entries if "/" in entry.name}
    ranks += [entry for entry in entries if entry.name in own and entry.is_dir() and entry not in ranks]
    folders = [entry.name for entry in entries if entry.is_dir() and entry not in ranks]
    folders += [f"{rank.name}/{entry.name}" for rank in ranks for entry in rank.iterdir() if entry.is_dir()]
    if folders:
        raise _kept(output, f"a folder with other folders in it ({folders[0]}), which no output has")
    entries = [entry for folder in (output, *ranks) for entry in folder.iterdir() if not entry.is_dir()]
    if entries and not any(entry.suffix in _WEIGHTS for entry in entries):
        raise _kept(output, f"a folder without weights ({entries[0].name})")


def _kept(output: Path, found: str) -> OutputExistsError:
    return OutputExistsError(
        Problem(
            str(output), found, "an earlier output to replace", "Remove it yourself, or choose another path with -o"
        )
    )
