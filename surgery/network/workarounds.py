"""Gaps of MindSpore, MindPet and MindFormers that are closed here, each with its reason and the versions that have it.

docs/adapters.md tells users of them. Closing one changes nothing that works without: each looks first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["forget_graphs", "give_cast", "swap_in_lists", "usable_home"]

# MindPet 1.0.4 opens its logs below $HOME/.cache/Huawei when it is imported.
_MINDPET_LOGS = Path(".cache/Huawei/mxTuningKit/log")
_HELD: list[tempfile.TemporaryDirectory[str]] = []


@contextmanager
def usable_home() -> Iterator[None]:
    """Let MindPet be imported where HOME is missing, is another user's or may not be written to.

    MindPet 1.0.4 refuses to be imported there (`mindpet/log/log_utils.py` checks the owner of each folder). It finds a
    temporary HOME while it is imported, and its logs go there; nothing else sees that.
    """
    home = os.environ.get("HOME")
    if home and _is_ours(Path(home)):
        yield
        return
    folder = tempfile.TemporaryDirectory(prefix="mindpet-")
    _HELD.append(folder)  # MindPet writes to it as long as the process lives
    os.environ["HOME"] = folder.name
    try:
        yield
    finally:
        if home is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = home


def _is_ours(home: Path) -> bool:
    """Whether the deepest folder of MindPet's logs that exists belongs to this user, who may write there."""
    folder = home / _MINDPET_LOGS
    while not folder.exists() and folder != home:
        folder = folder.parent
    try:
        owner = folder.stat().st_uid
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
