"""Outputs appear whole or not at all: a hidden sibling folder is filled, synced and then renamed into place.

    .NAME.pet-surgery/plan.sha256             the digest of the plan that fills it
    .NAME.pet-surgery/parts/RUN/...           what runs are writing, each in a folder of its own
    .NAME.pet-surgery/content/...             what is complete, under the names that it will have
    .NAME.pet-surgery/*.statistics.json       what was measured of complete files
    .NAME.pet-surgery/kept                    content is of runs of parts of the output, for one that completes it
    .NAME.pet-surgery/exchanged               which folder was content when it was exchanged for an older output
    .NAME.pet-surgery/replaced                that older output, where a file system exchanges no names
    .NAME.pet-surgery/beside/...              small files on their way to beside the output

The sibling lies beside the output, so that renames stay on one file system. `claims` locks it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.writing.linux import rename_exchange, rename_new
from surgery.errors import OutputExistsError, Problem, ResourceError

__all__ = ["Workspace", "keep_link", "refuse_existing", "sync_file", "sync_folder", "write_synced", "writing_failed"]

_DIGEST_FILE = "plan.sha256"
_CONTENT = "content"
_PARTS = "parts"
_KEPT_MARK = "kept"
_EXCHANGED = "exchanged"
_REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The hidden folder in which an output grows.

    Attributes:
        folder: The hidden folder itself.
        output: The path that the output will have.
        is_folder: Whether the output is a folder.
        force: Whether an existing output may be replaced.
        digest: The digest of the plan that fills it.
        run: Random: what this run writes lies apart from what others write.
    """

    folder: Path
    output: Path
    is_folder: bool
    force: bool
    digest: str
    run: str

    @classmethod
    def of(cls, output: Path, digest: str = "", *, is_folder: bool = False, force: bool = False) -> Workspace:
        """That of an output, whether it is there or not; by the output alone it is one to look at."""
        output = Path(os.path.realpath(output.parent)) / output.name  # unlike resolve(), fine with a circle of links
        hidden = output.parent / f".{output.name}.pet-surgery"
        return cls(hidden, output, is_folder, force, digest, secrets.token_hex(8))

    @property
    def content(self) -> Path:
        """The folder that holds the output's complete files."""
        return self.folder / _CONTENT

    @property
    def all_parts(self) -> Path:
        """The folder in which all runs write."""
        return self.folder / _PARTS

    @property
    def parts(self) -> Path:
        """The folder in which this run writes."""
        return self.all_parts / self.run

    @property
    def mark(self) -> Path:
        """The file with the digest."""
        return self.folder / _DIGEST_FILE

    @property
    def kept_mark(self) -> Path:
        """The file that says that what is complete was written by runs of parts, and outlives a run that fails."""
        return self.folder / _KEPT_MARK

    @property
    def beside(self) -> Path:
        """The folder of small files that go beside the output."""
        return self.folder / "beside"

    def new_part(self) -> Path:
        """A free path, where a file is written until it is complete.

        Another machine that was given up may still be writing to the path that it was given; nobody else gets that one.
        """
        self.parts.mkdir(parents=True, exist_ok=True)
        return self.parts / secrets.token_hex(8)

    def is_visible(self) -> bool:
        """Whether the hidden folder is the run's own, seen from here: asked by the processes that help it."""
        try:
            return self.mark.read_bytes() == self.digest.encode()
        except OSError:
            return False

    def complete(self, part: Path, name: str) -> None:
        """Give a written and synced part its name among the content, which marks it as complete."""
        place = self.content / name
        place.parent.mkdir(parents=True, exist_ok=True)
        part.rename(place)

    def has_content(self) -> bool:
        """Whether there is a complete file that a run may take over."""
        return not self._is_content_replaced() and any(path.is_file() for path in self.content.rglob("*"))

    def recover(self) -> None:
        """Undo, or complete, what a run that was killed while it published left half done.

        Raises:
            OSError: An I/O call failed.
        """
        replaced = self.folder / _REPLACED
        if os.path.lexists(replaced) and not os.path.lexists(self.output):
            replaced.rename(self.output)
        elif replaced.is_dir():
            shutil.rmtree(replaced)
        else:
            replaced.unlink(missing_ok=True)
        if self._is_content_replaced():
            shutil.rmtree(self.content)
        with suppress(FileNotFoundError):
            (self.folder / _EXCHANGED).unlink()

    def remove(self) -> None:
        """Remove the hidden folder; what a kill leaves of it is taken for no run's."""
        with suppress(OSError):
            self.mark.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self, name: str) -> None:
        """Remove a complete file, which turned out to be none."""
        (self.content / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the names of complete files durable."""
        for folder in sorted({path.parent for path in self.content.rglob("*")} | {self.content}):
            sync_folder(folder)

    def sync_all(self) -> None:
        """Make all durable that a later run needs to take over what is complete."""
        for path in self.folder.iterdir():
            if path.is_file():
                sync_file(path)
        self.sync()
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    def publish(self) -> None:
        """Put the complete output into its place, for good.

        Raises:
            OutputExistsError: An output appeared in the meantime, and `force` is not set.
        """
        self.put_in_place()
        sync_folder(self.output.parent)

    def put_in_place(self) -> None:
        """Put the complete output into its place, in one step; that is durable once the folder above it is synced.

        Raises:
            OutputExistsError: An output appeared in the meantime, and `force` is not set.
        """
        self.sync()
        new = self.content if self.is_folder else next(self.content.iterdir())
        if not self.force:
            self._publish_new(new)
        elif self.is_folder and self.output.is_dir() and not self.output.is_symlink():
            # A kill behind the exchange leaves the older output as content, which must not be taken for this plan's.
            write_synced(self.folder / _EXCHANGED, str(new.stat().st_ino).encode())
            sync_folder(self.folder)
            if not rename_exchange(new, self.output):
                old = self.folder / _REPLACED
                self.output.rename(old)
                try:
                    new.rename(self.output)
                except OSError:
                    old.rename(self.output)
                    raise
        else:
            new.replace(self.output)

    def _is_content_replaced(self) -> bool:
        """Whether what lies as content is the output that was there before, as a run was killed behind the exchange."""
        try:
            return int((self.folder / _EXCHANGED).read_bytes()) != self.content.stat().st_ino
        except (OSError, ValueError):
            return False  # nothing was exchanged: what is said of an exchange is durable before it

    def _publish_new(self, new: Path) -> None:
        try:
            if not rename_new(new, self.output):
                refuse_existing(self.output)
                new.rename(self.output)
        except FileExistsError as error:
            raise _exists(self.output) from error


def refuse_existing(output: Path) -> None:
    """Make sure that nothing lies at the output's path.

    Raises:
        OutputExistsError: Something does.
    """
    if os.path.lexists(output):
        raise _exists(output)


def writing_failed(output: Path, error: OSError) -> ResourceError:
    """What a failed call means for whoever waits for an output."""
    remedies = {
        errno.ENOSPC: "Free some room or choose another place with -o",
        errno.EDQUOT: "Raise the quota or choose another place with -o",
    }
    found = f"writing failed: {(error.strerror or str(error)).lower()}"
    return ResourceError(Problem(str(output), found, remedy=remedies.get(error.errno or 0, "")))


def keep_link(path: Path, kept: Path) -> bool:
    """Keep a file that is about to be replaced, under another name; False where the file system has no hard links.

    Raises:
        OSError: The link failed.
    """
    try:
        os.link(path, kept)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        return False
    return True


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file, and wait until its bytes are durable."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable that was written and closed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
