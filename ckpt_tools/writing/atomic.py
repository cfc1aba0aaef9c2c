"""Outputs appear whole or not at all: a hidden sibling folder is filled, synced and then renamed into place.

The sibling is `.NAME.pet-surgery` beside the output, so the rename stays on one file system. It is locked while a run
fills it; what a killed run left there is taken up again where the plan is the same, and removed where it is not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.writing.linux import rename_exchange, rename_new
from surgery.errors import OutputExistsError, OutputLockedError, Problem, ResourceError

__all__ = ["Workspace", "claim_output", "refuse_existing", "sync_folder"]

_DIGEST_FILE = "plan.sha256"
_CONTENT = "content"
_PART = ".part"
_ATTEMPTS = "attempts"

# Where no folder can be made at all (/proc), making one fails as if it had just been removed.
_LOCK_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Workspace:
    """The hidden folder in which an output grows.

    Attributes:
        folder: The hidden folder itself.
        output: The path that the output will have.
        is_folder: Whether the output is a folder.
        force: Whether an existing output may be replaced.
        digest: The digest of the plan that fills it.
    """

    folder: Path
    output: Path
    is_folder: bool
    force: bool
    digest: str

    @property
    def content(self) -> Path:
        """The folder that holds the output's files."""
        return self.folder / _CONTENT

    def part(self, name: str) -> Path:
        """Where a file of the output is written until it is complete."""
        return self.content / (name + _PART)

    def attempt(self, key: str) -> Path:
        """Where another process writes a file until this one takes it over: a place apart from all other attempts.

        A machine that was given up may still be writing. What it writes is of no attempt that counts, and nothing of it
        is ever among the content.

        Args:
            key: Random; the attempt's name.
        """
        folder = self.folder / _ATTEMPTS
        folder.mkdir(exist_ok=True)
        return folder / key

    def take_over(self, attempt: Path, name: str) -> None:
        """Make what an attempt wrote and synced the part of a file."""
        part = self.part(name)
        part.parent.mkdir(parents=True, exist_ok=True)
        attempt.rename(part)

    def is_visible(self) -> bool:
        """Whether the hidden folder is the run's own, seen from here: asked by the processes that help it."""
        try:
            return (self.folder / _DIGEST_FILE).read_text() == self.digest
        except OSError:
            return False

    def is_complete(self, name: str) -> bool:
        """Whether a run before this one, of the same plan, completed the file."""
        return (self.content / name).is_file()

    def complete(self, name: str) -> None:
        """Give a written and synced file the name that marks it as complete."""
        self.part(name).rename(self.content / name)

    def publish(self) -> None:
        """Put the complete output into its place, in one step.

        Raises:
            OutputExistsError: An output appeared in the meantime, and `force` is not set.
        """
        for folder in sorted({path.parent for path in self.content.rglob("*")} | {self.content}):
            sync_folder(folder)
        new = self.content if self.is_folder else next(self.content.iterdir())
        if not self.force:
            self._publish_new(new)
        elif self.is_folder and self.output.is_dir() and not self.output.is_symlink():
            if not rename_exchange(new, self.output):
                old = self.folder / "replaced"
                self.output.rename(old)
                try:
                    new.rename(self.output)
                except OSError:
                    old.rename(self.output)
                    raise
        else:
            new.replace(self.output)
        sync_folder(self.output.parent)

    def _publish_new(self, new: Path) -> None:
        try:
            if not rename_new(new, self.output):
                refuse_existing(self.output)
                new.rename(self.output)
        except FileExistsError as error:
            raise _exists(self.output) from error


@contextmanager
def claim_output(output: Path, digest: str, *, is_folder: bool, force: bool) -> Iterator[Workspace]:
    """Reserve an output path for one run; whatever happens, nothing hidden is left behind.

    Args:
        output: The path of the output. Missing folders above it are made.
        digest: The plan's digest; what a dead run with the same one completed is kept.
        is_folder: Whether the output is a folder.
        force: Whether an existing output may be replaced.

    Raises:
        OutputExistsError: The output exists and `force` is not set.
        OutputLockedError: Another run is writing it.
        ResourceError: The folder cannot be made or written to.
    """
    output = Path(os.path.realpath(output.parent)) / output.name  # unlike resolve(), fine with a circle of links
    if not force:
        refuse_existing(output)
    hidden = output.parent / f".{output.name}.pet-surgery"
    made = _make_folders(output.parent)
    try:
        descriptor = _lock(hidden)
        try:
            workspace = Workspace(hidden, output, is_folder, force, digest)
            _prepare(workspace)
            yield workspace
        finally:
            # The folder goes before the lock does, so that no other run can find it half removed.
            shutil.rmtree(hidden, ignore_errors=True)
            os.close(descriptor)
    finally:
        _remove_empty(made)


def refuse_existing(output: Path) -> None:
    """Make sure that nothing lies at the output's path.

    Raises:
        OutputExistsError: Something does.
    """
    if os.path.lexists(output):
        raise _exists(output)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no fsync of folders; their names are durable when rename returns.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _exists(output: Path) -> OutputExistsError:
    return OutputExistsError(
        Problem(str(output), "it exists already", "a free path", "Choose another with -o, or replace it with --force")
    )


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were missing, deepest first."""
    missing: list[Path] = []
    try:
        missing += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise _refused(folder, error) from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _lock(hidden: Path) -> int:
    attempts = 0
    while True:
        attempts += 1
        try:
            hidden.mkdir(exist_ok=True)
            descriptor = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempts < _LOCK_ATTEMPTS:
                continue  # the run that held it has just removed it
            raise _refused(hidden.parent, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputLockedError(
                Problem(str(hidden), "another run holds it", "an output that no other run is writing", "Wait for it")
            ) from error
        except OSError as error:
            # File systems without locks (some Lustre and NFS mounts) still get all of the other guarantees.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(descriptor)
                raise
        if _is_still(hidden, descriptor):
            return descriptor
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _prepare(workspace: Workspace) -> None:
    marker = workspace.folder / _DIGEST_FILE
    try:
        if not (marker.is_file() and marker.read_bytes() == workspace.digest.encode()):
            for path in workspace.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in workspace.content.rglob("*" + _PART):
            path.unlink()
        if (workspace.folder / _ATTEMPTS).exists():
            shutil.rmtree(workspace.folder / _ATTEMPTS)
        workspace.content.mkdir(exist_ok=True)
        marker.write_text(workspace.digest)
    except OSError as error:
        raise _refused(workspace.folder, error) from error


def _refused(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        Problem(str(folder), (error.strerror or str(error)).lower(), "a folder that can be written to", "Choose -o")
    )
