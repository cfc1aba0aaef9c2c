"""The files of a checkpoint folder, and which of them may be followed.

A folder may come from anywhere, so nothing in it leads out of it: neither a name such as `../x` in an index, nor a
symbolic link. A link that leaves the folder could make a release carry a file of the host (a companion that is copied),
or weights that the folder's publisher never had. One kind of link is followed: that of a Hugging Face hub cache, where
`snapshots/REVISION/FILE` is a link into the `blobs` folder beside `snapshots`. Whoever links weights together by hand
can link hard, or pass the file itself: a path that the user gave is followed wherever it leads.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ckpt_tools.formats.ckpt_values import quote_name
from surgery.errors import CorruptInputError, InputMissingError, PetSurgeryError, Problem

__all__ = [
    "ADAPTER_CONFIG",
    "MANIFEST_NAME",
    "WEIGHT_SUFFIXES",
    "Listing",
    "companions_of",
    "is_folder",
    "list_folder",
    "locate",
    "natural_key",
]

WEIGHT_SUFFIXES = (".safetensors", ".ckpt")
"""What is read; told apart by content."""

ADAPTER_CONFIG = "adapter_config.json"

MANIFEST_NAME = "pet-manifest.json"
"""What an operation of this project says of its output; it holds for no other."""

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz", ".ot", ".pkl")
_INDEX_NAMES = re.compile(r".*\.index(\.[^.]+)?\.json|param_name_map\.json", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies at the top level of a folder, without what begins with a dot; names in natural order.

    Attributes:
        root: The folder, with its own links resolved.
        files: Everything that is no folder, whether it can be read or not.
        folders: Sub-folders.
    """

    root: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts `part2` before `part10`."""
    # By the count of digits and the digits: an index may name a file with more of them than Python makes a number of.
    pieces = re.split(r"0*([0-9]+)", name)
    return [(len(piece), piece) if place % 2 else (-1, piece) for place, piece in enumerate(pieces)], name


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder; not where that cannot be found out, of which whoever opens it says why."""
    try:
        return Path(path).is_dir()
    except OSError:  # a name that is too long, a folder above it that may not be searched
        return False


def list_folder(path: str | os.PathLike[str]) -> Listing:
    """Look at a folder.

    Raises:
        InputMissingError: It is not there, or may not be read.
    """
    try:
        root = Path(path).resolve(strict=True)
        with os.scandir(root) as entries:
            found = [(entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputMissingError(
            Problem(str(path), (error.strerror or str(error)).lower(), "a readable folder", "Check the path")
        ) from error
    found.sort(key=lambda item: natural_key(item[0]))
    return Listing(
        root,
        files=tuple(name for name, is_folder in found if not is_folder),
        folders=tuple(name for name, is_folder in found if is_folder),
    )


def locate(root: Path, name: str, named_by: str) -> Path:
    """The path of a regular file of the folder, once it is sure that it is one.

    Args:
        root: The folder, resolved.
        name: The file's name relative to it, as an index or a listing has it.
        named_by: Who names it, for an error.

    Raises:
        CorruptInputError: The name, or a link, leads out of the folder, or to no regular file.
        InputMissingError: There is no such file.
    """
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise CorruptInputError(
            Problem(
                named_by,
                f"the file name {quote_name(name)}",
                "a name inside the folder",
                "Do not trust this checkpoint",
            )
        )
    path = root / pure
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        found = "a broken link" if path.is_symlink() else "no such file"
        raise InputMissingError(Problem(f"{path}, named by {named_by}", found, "a shard", "Fetch it")) from error
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError before Python 3.13
        raise CorruptInputError(Problem(f"{path}, named by {named_by}", str(error), "a regular file")) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise CorruptInputError(
            Problem(f"{path}, named by {named_by}", kind, "a regular file", "Put the file itself in its place")
        )
    if not _may_follow(root, resolved):
        raise CorruptInputError(
            Problem(
                f"{path}, named by {named_by}",
                f"a link that leaves the folder, to {resolved}",
                "a file inside the folder",
                "Replace it by the file or a hard link, or pass the path it leads to",
            )
        )
    return path


def companions_of(listing: Listing) -> tuple[tuple[Path, ...], list[str]]:
    """The files that belong to the weights (configuration, tokenizer, licence), and a warning for each left out.

    These are all regular files at the top level but weights of any format, indexes, the adapter's configuration and a
    manifest.
    """
    companions, warnings = [], []
    for name in listing.files:
        is_weights = name.lower().endswith((*WEIGHT_SUFFIXES, *_OTHER_WEIGHTS))
        if is_weights or name in (ADAPTER_CONFIG, MANIFEST_NAME) or _INDEX_NAMES.fullmatch(name):
            continue
        try:
            locate(listing.root, name, "its folder")
        except PetSurgeryError as error:
            warnings.append(f"{error} It is left out.")
        else:
            companions.append(Path(name))
    return tuple(companions), warnings


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _may_follow(root: Path, resolved: Path) -> bool:
    if resolved.is_relative_to(root):
        return True
    return any(
        folder.name == "snapshots" and resolved.parent == folder.parent / "blobs" for folder in (root, *root.parents)
    )
