"""Gaps of MindSpore, MindPet and MindFormers that are closed here, each with its reason and the versions that have it.

docs/adapters.md tells users of them. Closing one changes nothing that works without: each looks first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["forget_graphs", "give_cast", "give_log_folder", "swap_in_lists"]

# Where MindPet 1.0.4 keeps its logs below HOME.
_MINDPET_FOLDER = Path(".cache/Huawei/mxTuningKit")
_HELD: list[tempfile.TemporaryDirectory[str]] = []


def give_log_folder(constants: Any) -> None:
    """Let MindPet write its logs to a temporary folder where HOME is missing, another user's, or cannot be written to.

    MindPet 1.0.4 ends the process there at its first message (`mindpet/log/log.py`), and its freezing, which
    MindFormers calls, begins with one.

    Args:
        constants: MindPet's object with the folder of its logs, which is None before the first message.
    """
    home = os.environ.get("HOME")
    if constants.local_default_log_file_dir is None and not (home and _is_ours(Path(home))):
        folder = tempfile.TemporaryDirectory(prefix="mindpet-")
        _HELD.append(folder)  # it is written to as long as the process lives
        constants.local_default_log_file_dir = folder.name


def _is_ours(home: Path) -> bool:
    """Whether HOME is this user's, who may write to the deepest folder of MindPet's that is there."""
    folder = home / _MINDPET_FOLDER
    while not folder.exists() and folder != home:
        folder = folder.parent
    try:
        owner = home.stat().st_uid
    except OSError:
        return False
    return owner == os.geteuid() and os.access(folder, os.W_OK | os.X_OK)


def give_cast(kinds: tuple[type[Any], ...], cast: Any) -> None:
    """Give `self.cast` to cells that use it without having it.

    `nn.Cell` had a `cast` in MindSpore 2.0.0 and has none from 2.7.0 on. Still used is it by MindPet 1.0.4's
    `LowRankLinear`; in MindFormers 1.3.2 by `RotaryEmbedding`, so by all of its LLaMA networks, and by most of GLM2; in
    1.9.0 by GLM2's `ChatGLM2RMSNorm`.

    Args:
        kinds: The classes.
        cast: An instance of MindSpore's `Cast` primitive.
    """
    for kind in kinds:
        if not hasattr(kind, "cast"):
            kind.cast = cast


def swap_in_lists(holder: Any, replaced: Callable[[Any], Any]) -> None:
    """Keep up the lists in which a cell holds its children a second time.

    `nn.SequentialCell` (MindSpore 2.7.2, 2.9.0) calls what is in its `cell_list`, so a child that is replaced in
    `_cells` alone, as MindFormers does, is never called: the network trains nothing there, without a word.

    Args:
        holder: A cell.
        replaced: What stands in a cell's place: the cell itself where it was not replaced.
    """
    for name, value in list(vars(holder).items()):
        if name.startswith("_") or not isinstance(value, (list, tuple)):
            continue
        swapped = [replaced(entry) for entry in value]
        if any(new is not old for new, old in zip(swapped, value, strict=True)):
            object.__setattr__(holder, name, type(value)(swapped))


def forget_graphs(cells: Iterable[Any]) -> None:
    """Have cells compiled anew at their next call in graph mode.

    A cell that was called keeps its graph (MindSpore 2.7.2, 2.9.0), and computes what it did, whatever was hung into it
    since. A cell around them, such as one that trains, is to be made afterwards.
    """
    for cell in cells:
        cell.compile_cache.clear()
