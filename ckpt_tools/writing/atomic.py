"""Outputs appear whole or not at all: a hidden sibling folder is filled, synced and then renamed into place.

    .NAME.pet-surgery/plan.sha256             the digest of the plan that fills it
    .NAME.pet-surgery/parts/RUN/...           what runs are writing, each in a folder of its own
    .NAME.pet-surgery/content/...             what is complete, under the names that it will have
    .NAME.pet-surgery/*.statistics.json       what was measured of complete files
    .NAME.pet-surgery/kept                    content is of runs of parts of the output, for one that completes it

The sibling lies beside the output, so that renames stay on one file system. `claims` locks it.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.writing.linux import rename_exchange, rename_new
from surgery.errors import OutputExistsError, Problem

__all__ = ["Workspace", "refuse_existing", "sync_folder"]

_DIGEST_FILE = "plan.sha256"
_CONTENT = "content"
_PARTS = "parts"
_KEPT_MARK = "kept"


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

    def is_complete(self, name: str) -> bool:
        """Whether a run before this one, of the same plan, completed the file."""
        return (self.content / name).is_file()

    def complete(self, part: Path, name: str) -> None:
        """Give a written and synced part its name among the content, which marks it as complete."""
        place = self.content / name
        place.parent.mkdir(parents=True, exist_ok=True)
        part.rename(place)

    def discard(self, name: str) -> None:
        """Remove a complete file, which turned out to be none."""
        (self.content / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the names of complete files durable."""
        for folder in sorted({path.parent for path in self.content.rglob("*")} | {self.content}):
            sync_folder(folder)

    def publish(self) -> None:
        """Put the complete output into its place, in one step.

        Raises:
            OutputExistsError: An output appeared in the meantime, and `force` is not set.
        """
        self.sync()
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
