"""Where MindFormers' Checkpoint 2.0 puts things, and how a folder of it is found.

    SAVE/latest_checkpointed_iteration.txt    the number of the last iteration that was saved to its end
    SAVE/iteration_00000120/
        metadata.json                                  which slice of which tensor is in which file; not for one rank
        common.json                                    counters of the training
        [PREFIX-]model-0000000-0000008.safetensors     weights: a file's number, and how many there are
        [PREFIX-]opt-0000000-0000008.safetensors       optimizer states

The number of a file is its rank, unless replicas were left out on saving: then ranks that save nothing have none.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.folder import WEIGHT_SUFFIXES, Listing, is_folder, list_folder, locate
from ckpt_tools.tensors.sources import open_source, read_exactly
from surgery.errors import CorruptInputError, InputMissingError, PetSurgeryError, Problem

__all__ = [
    "COMMON_FILE",
    "METADATA_FILE",
    "MODEL",
    "OPTIMIZER",
    "TRACKER_FILE",
    "WeightsFileName",
    "find_iteration",
    "has_metadata",
    "is_iteration",
    "iteration_folder_name",
    "iteration_number",
]

TRACKER_FILE = "latest_checkpointed_iteration.txt"
METADATA_FILE = "metadata.json"
COMMON_FILE = "common.json"

MODEL, OPTIMIZER = "model", "opt"
"""The kinds of weights files, as their names say it."""

_ITERATION = re.compile(r"iteration_([0-9]{1,18})")
_WEIGHTS = re.compile(rf"(?:(.+)-)?({MODEL}|{OPTIMIZER})-([0-9]{{7,18}})-([0-9]{{7,18}})\.safetensors", re.DOTALL)
_TRACKER_BYTES = 100
_METADATA_HEAD_BYTES = 2**20
_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class WeightsFileName:
    """What the name of a weights file says.

    Attributes:
        kind: `MODEL` or `OPTIMIZER`.
        index: Its number, from 0 on.
        total: How many files of this kind there are.
        prefix: What the user put before it; None for nothing.
    """

    kind: str
    index: int
    total: int
    prefix: str | None = None

    @classmethod
    def parse(cls, name: str) -> WeightsFileName | None:
        """The parts of a file's name, or None where it is not of this form."""
        match = _WEIGHTS.fullmatch(name)
        return cls(match[2], int(match[3]), int(match[4]), match[1]) if match else None

    def __str__(self) -> str:
        prefix = "" if self.prefix is None else f"{self.prefix}-"
        return f"{prefix}{self.kind}-{self.index:07d}-{self.total:07d}.safetensors"


def iteration_folder_name(number: int) -> str:
    """The name of an iteration's folder."""
    return f"iteration_{number:08d}"


def iteration_number(folder: Path) -> int | None:
    """The iteration that a folder's name says, or None."""
    match = _ITERATION.fullmatch(folder.name) or _ITERATION.fullmatch(folder.resolve().name)
    return int(match[1]) if match else None


def is_iteration(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an iteration's folder or the parent of iterations, by names and a little of metadata.json."""
    if not is_folder(path):
        return False
    try:
        listing = list_folder(path)
        return _is_parent(listing) or _is_iteration_folder(listing)
    except PetSurgeryError:
        return False


def find_iteration(path: str | os.PathLike[str], number: int | None = None) -> Path:
    """The folder of the iteration that is meant.

    Args:
        path: The folder itself; or its parent, whose tracker says which iteration is the last. Without a tracker it is
            the one with the highest number.
        number: Which iteration it has to be.

    Raises:
        InputMissingError: There is none, or not the one that the tracker or the number names.
        CorruptInputError: The tracker holds no number.
    """
    listing = list_folder(path)
    if _is_iteration_folder(listing):
        own = iteration_number(Path(path))
        if number not in (None, own):
            said = "an iteration whose folder says no number" if own is None else f"iteration {own}"
            raise InputMissingError(Problem(str(path), said, f"iteration {number}", "Pass its folder, or their parent"))
        return Path(path)
    found = _iterations(listing)
    if number is not None:
        if number not in found:
            there = _shown(found) if found else "no iteration"
            raise InputMissingError(Problem(str(path), there, iteration_folder_name(number), "Choose another"))
    elif TRACKER_FILE in listing.files:
        number = _read_tracker(listing)
        if number not in found:
            raise InputMissingError(
                Problem(
                    f"{Path(path) / TRACKER_FILE}, which names iteration {number}",
                    f"no folder {iteration_folder_name(number)}, only {_shown(found)}" if found else "no iteration",
                    f"{Path(path) / iteration_folder_name(number)}",
                    "Fetch it, or pass the folder of the iteration that is meant",
                )
            )
    elif found:
        number = max(found)
    else:
        raise InputMissingError(
            Problem(str(path), "none", f"a folder {iteration_folder_name(0)} or the like", "Check the path")
        )
    return Path(path) / found[number]


def _is_parent(listing: Listing) -> bool:
    # A folder that holds weights itself is their checkpoint, whatever lies below it.
    return TRACKER_FILE in listing.files or bool(_iterations(listing) and not listing.with_suffix(*WEIGHT_SUFFIXES))


def has_metadata(listing: Listing) -> bool:
    """Whether a folder's `metadata.json` is that of an iteration, by its first MiB.

    Raises:
        CorruptInputError: It is a link out of the folder, or no regular file.
    """
    if METADATA_FILE not in listing.files:
        return False
    source = open_source(locate(listing.root, METADATA_FILE, "its folder"))
    head = read_exactly(source, 0, min(source.size, _METADATA_HEAD_BYTES))
    return b'"state_dict_metadata"' in head or b'"storage_data"' in head


def _is_iteration_folder(listing: Listing) -> bool:
    if has_metadata(listing):
        return True
    has_weights = any(WeightsFileName.parse(name) for name in listing.files)
    return has_weights and (COMMON_FILE in listing.files or _ITERATION.fullmatch(listing.root.name) is not None)


def _iterations(listing: Listing) -> dict[int, str]:
    """Number to folder; of two with one number that which MindFormers would take."""
    found: dict[int, str] = {}
    for name in listing.folders:
        match = _ITERATION.fullmatch(name)
        if match and (int(match[1]) not in found or name == iteration_folder_name(int(match[1]))):
            found[int(match[1])] = name
    return found


def _read_tracker(listing: Listing) -> int:
    source = open_source(locate(listing.root, TRACKER_FILE, "its folder"))
    text = bytes(read_exactly(source, 0, min(source.size, _TRACKER_BYTES))).decode("utf-8", "replace").strip()
    if source.size > _TRACKER_BYTES or not re.fullmatch(r"[0-9]{1,18}", text):
        raise CorruptInputError(
            Problem(
                source.path,
                quote_name(text) if text else "nothing",
                "the number of an iteration",
                "Pass the folder of the iteration that is meant",
            )
        )
    return int(text)


def _shown(found: dict[int, str]) -> str:
    names = [found[number] for number in sorted(found, reverse=True)[:_MAX_LISTED]]
    return ", ".join(names) + (f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else "")
