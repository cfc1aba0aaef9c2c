"""What of a folder outlives a loss of power: what fsync was called on, and nothing else.

Two machines are modelled. On the forgetful one a folder has the entries that it had at its last fsync, and a file its
bytes at its own. On the orderly one, as on a journaling file system, every name is there, and the bytes that were not
synced are gone: the file is empty, or as long as it was and zeros.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from tracing import Call

__all__ = ["Durable", "Times", "Tree", "put_tree", "take_times", "take_tree"]

Tree = dict[str, bytes | None]
"""Path below a folder to a file's bytes, or None for a folder."""

Times = dict[str, int]
"""Path below a folder to the time of a file's last modification, in nanoseconds."""

_SYNCS = ("fsync", "fdatasync")


def take_tree(folder: Path) -> Tree:
    """All that lies below a folder."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def take_times(folder: Path) -> Times:
    """When the files below a folder were last written to."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def put_tree(folder: Path, tree: Tree, times: Times | None = None) -> None:
    """Make a folder's content a tree; a loss of power leaves the files' times, whatever it does to their bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in sorted(tree):
        data = tree[name]
        if data is None:
            (folder / name).mkdir()
            continue
        (folder / name).write_bytes(data)
        if times and name in times:
            os.utime(folder / name, ns=(times[name], times[name]))


class Durable:
    """Watches a process's calls and keeps what they make durable; what lies there at first is.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._root_inode = root.stat().st_ino
        self._folders: dict[int, dict[str, tuple[bool, int]]] = {}
        self._files: dict[int, bytes] = {}
        self._creating: set[str] = set()
        for path in (root, *root.rglob("*")):
            self._take(str(path))

    def before(self, call: Call) -> None:
        """To be told of each call before it is done."""
        if call.name == "openat" and call.flags & os.O_CREAT and not os.path.lexists(call.paths[0]):
            self._creating.add(call.paths[0])

    def after(self, call: Call) -> None:
        """To be told of each call that succeeded."""
        if call.name in _SYNCS:
            self._take(call.descriptor)
        elif call.name in ("mkdir", "mkdirat") or (call.name == "openat" and call.paths[0] in self._creating):
            # The number may have belonged to a file that is gone.
            self._creating.discard(call.paths[0])
            inode = os.lstat(call.paths[0]).st_ino
            self._folders.pop(inode, None)
            self._files.pop(inode, None)

    def forgetful(self) -> Tree:
        """What is left where nothing outlives that was not synced."""
        tree: Tree = {}
        self._add_folder(tree, self._root_inode, "")
        return tree

    def orderly(self, lost: Callable[[int], bytes]) -> Tree:
        """What is left where every name is durable; what unsynced files hold is told by their size."""
        tree: Tree = {}
        for path in self._root.rglob("*"):
            info = path.lstat()
            name = str(path.relative_to(self._root))
            tree[name] = None if path.is_dir() else self._files.get(info.st_ino, lost(info.st_size))
        return tree

    def _take(self, path: str) -> None:
        info = Path(path).stat()
        if stat.S_ISDIR(info.st_mode):
            with os.scandir(path) as entries:
                found = {entry.name: (entry.is_dir(), entry.inode()) for entry in entries}
            # A folder has one name: where the one that it was moved to is durable, the one before is gone.
            moved = {inode for is_folder, inode in found.values() if is_folder}
            for held in self._folders.values():
                for name in [name for name, (_, inode) in held.items() if inode in moved]:
                    del held[name]
            self._folders[info.st_ino] = found
        else:
            self._files[info.st_ino] = Path(path).read_bytes()

    def _add_folder(self, tree: Tree, inode: int, prefix: str) -> None:
        for name, (is_folder, child) in self._folders.get(inode, {}).items():
            tree[prefix + name] = None if is_folder else self._files.get(child, b"")
            if is_folder:
                self._add_folder(tree, child, f"{prefix}{name}/")
