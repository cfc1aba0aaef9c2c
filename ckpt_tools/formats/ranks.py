"""Folders of `rank_N/` folders, as distributed training saves them: one file a rank, often of several steps."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.formats.folder import WEIGHT_SUFFIXES, is_folder, list_folder
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.formats.recognise import read_file
from surgery.errors import InputMissingError, MismatchError, PetSurgeryError, Problem, UsageError

__all__ = ["RankFolder", "is_rank_folder", "rank_numbers", "rank_steps", "read_rank_folder"]

_RANK = re.compile(r"rank_(0|[1-9][0-9]*)")
_STEP = re.compile(r"-([0-9]+)_([0-9]+)$")
_RANK_IN_NAME = re.compile(r"(?:^|_)rank_([0-9]+)(?=[^0-9]|$)")
_MAX_LISTED = 5

Step = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RankFolder:
    """The checkpoint files of all ranks, whose headers were read.

    Attributes:
        path: The folder.
        step: Epoch and step in the names of the files, as `9_1`; empty where the names have none.
        ranks: The file of each rank, from rank 0 on.
    """

    path: Path
    step: str
    ranks: tuple[Checkpoint, ...]


def is_rank_folder(path: Path) -> bool:
    """Whether a folder holds `rank_N/` folders."""
    try:
        return is_folder(path) and bool(rank_numbers(path))
    except PetSurgeryError:  # it may not be looked into: whoever opens it says so
        return False


def rank_numbers(path: Path) -> list[int]:
    """The numbers of the `rank_N/` folders in a folder, from the lowest on.

    Raises:
        InputMissingError: It is not there, or may not be read.
    """
    return sorted(int(match[1]) for name in list_folder(path).folders if (match := _RANK.fullmatch(name)))


def read_rank_folder(path: str | os.PathLike[str], step: str | None = None) -> RankFolder:
    """Read the headers of all ranks' files, of one and the same step.

    Args:
        path: The folder with the `rank_N/` folders.
        step: Which step, as `EPOCH_STEP`; by default the latest, which has to be that of all ranks.

    Raises:
        UsageError: The step is not of this form.
        InputMissingError: There are no ranks, or one has no file, or not of this step.
        CorruptInputError: A file breaks its format.
        MismatchError: A rank is missing, the ranks' latest steps differ, or a rank has several files to choose from.
    """
    path = Path(path)
    numbers = rank_numbers(path)
    if not numbers:
        raise InputMissingError(
            Problem(str(path), "no rank_N folder", "rank_0, rank_1, ...", "Pass their parent folder")
        )
    if len(numbers) <= numbers[-1]:
        raise MismatchError(
            Problem(
                str(path), _lacking(numbers), f"all of rank_0 to rank_{numbers[-1]}", "Copy the missing ones here too"
            )
        )
    wanted = _parse_step(step) if step is not None else None
    files = [_files_by_step(path / f"rank_{number}") for number in numbers]
    chosen = _choose(path, files, wanted)
    checkpoints = _read_all([_only(path / f"rank_{number}", by_step[chosen]) for number, by_step in enumerate(files)])
    return RankFolder(path, "" if chosen is None else f"{chosen[0]}_{chosen[1]}", checkpoints)


def rank_steps(path: Path) -> tuple[list[str], bool]:
    """The steps that all ranks have, from the earliest on, and whether the latest of each rank is the same one."""
    files = [_files_by_step(path / f"rank_{number}") for number in rank_numbers(path)]
    common = set.intersection(*(set(by_step) for by_step in files)) if files else set()
    latest = {max(by_step, key=lambda step: step or (-1, -1)) for by_step in files if by_step}
    return ["_".join(map(str, step)) for step in sorted(step for step in common if step)], len(latest) <= 1


def _parse_step(step: str) -> Step:
    match = re.fullmatch(r"([0-9]+)_([0-9]+)", step)
    if not match:
        raise UsageError(Problem("--step", repr(step), "EPOCH_STEP, as in the files' names: 9_1"))
    return int(match[1]), int(match[2])


def _lacking(numbers: Sequence[int]) -> str:
    """The first ranks that are not there, without counting up to the last one: a folder's name may put it anywhere."""
    present = set(numbers)
    absent = (number for number in range(numbers[-1]) if number not in present)
    names = ", ".join(f"rank_{number}" for number in itertools.islice(absent, _MAX_LISTED))
    more = numbers[-1] + 1 - len(numbers) - _MAX_LISTED
    return f"no {names}" + (f" and {more} more" if more > 0 else "")


def _files_by_step(folder: Path) -> dict[Step | None, list[Path]]:
    found: dict[Step | None, list[Path]] = {}
    for name in list_folder(folder).with_suffix(*WEIGHT_SUFFIXES):
        file = folder / name
        if not file.is_file():
            continue
        match = _STEP.search(file.stem)
        found.setdefault((int(match[1]), int(match[2])) if match else None, []).append(file)
    return found


def _choose(path: Path, files: list[dict[Step | None, list[Path]]], wanted: Step | None) -> Step | None:
    """The step that is read: numbers are compared as numbers, so that step 10 comes behind step 9."""
    empty = [number for number, by_step in enumerate(files) if not by_step]
    if empty:
        raise InputMissingError(
            Problem(str(path / f"rank_{number}"), "no .ckpt and no .safetensors file", "the checkpoint of this rank")
            for number in empty[:_MAX_LISTED]
        )
    if wanted is not None:
        lacking = [number for number, by_step in enumerate(files) if wanted not in by_step]
        if lacking:
            common = set.intersection(*(set(by_step) for by_step in files)) - {None}
            has = ", ".join("_".join(map(str, step)) for step in sorted(step for step in common if step)) or "none"
            raise InputMissingError(
                Problem(
                    f"--step {wanted[0]}_{wanted[1]}",
                    f"no such file in {path / f'rank_{lacking[0]}'}",
                    f"a step that all ranks have: {has}",
                )
            )
        return wanted
    latest = [max(by_step, key=lambda step: step or (-1, -1)) for by_step in files]
    if len(set(latest)) > 1:
        low, high = min(latest, key=lambda step: step or (-1, -1)), max(latest, key=lambda step: step or (-1, -1))
        ranks = f"rank_{latest.index(low)} is at {_name(low)}, rank_{latest.index(high)} at {_name(high)}"
        raise MismatchError(
            Problem(str(path), f"{ranks}", "all ranks at the same step", "Choose one that all have with --step")
        )
    both = next((number for number, by_step in enumerate(files) if None in by_step and len(by_step) > 1), None)
    if both is not None:
        names = ", ".join(file.name for group in files[both].values() for file in group[:2])
        raise MismatchError(
            Problem(
                str(path / f"rank_{both}"),
                f"files with and without a step in their names: {names}",
                "one run's files",
                "Choose with --step, or move the others away",
            )
        )
    return latest[0]


def _name(step: Step | None) -> str:
    return "no step" if step is None else f"step {step[0]}_{step[1]}"


def _only(folder: Path, files: list[Path]) -> Path:
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:_MAX_LISTED])
        raise MismatchError(Problem(str(folder), f"{len(files)} files: {names}", "one file", "Move the others away"))
    # The last one: what the user put before it may name LoRA's rank.
    said = _RANK_IN_NAME.findall(files[0].stem)[-1:]
    if said and f"rank_{said[0]}" != folder.name:
        raise MismatchError(Problem(str(files[0]), f"the file of rank {said[0]}", f"one of {folder.name}"))
    return files[0]


def _read_all(files: list[Path]) -> tuple[Checkpoint, ...]:
    """Headers of all files; what is wrong with several of them is told at once."""
    outcomes = [_try_read(file) for file in files]
    errors = [outcome for outcome in outcomes if isinstance(outcome, PetSurgeryError)]
    if errors:
        raise type(errors[0])(problem for error in errors for problem in error.problems)
    return tuple(outcome for outcome in outcomes if isinstance(outcome, Checkpoint))


def _try_read(file: Path) -> Checkpoint | PetSurgeryError:
    try:
        return read_file(file)
    except PetSurgeryError as error:
        return error
