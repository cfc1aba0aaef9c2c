"""Who may fill an output: one run alone, or several runs of its parts at once.

A run of the whole output locks the hidden folder for itself. Runs of parts (`--ranks`) share the lock and leave behind
what they completed, which a run of the whole takes over. What a killed run left is taken up again where the plan is the
same, and removed where it is not.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckpt_tools.writing.atomic import Workspace, refuse_existing, sync_folder, write_synced, writing_failed
from ckpt_tools.writing.leftovers import refuse_taken
from ckpt_tools.writing.locks import Lock, is_still, try_lock
from surgery.errors import OutputExistsError, OutputLockedError, Problem, ResourceError

__all__ = ["check_claimable", "claim_output", "claim_part"]

# Where no folder can be made at all (/proc), making one fails as if it had just been removed.
_LOCK_ATTEMPTS = 100

# A run of a part holds the lock alone for a moment, in which it prepares the folder for all of them.
_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.05


@contextmanager
def claim_output(output: Path, digest: str, *, is_folder: bool, force: bool) -> Iterator[Workspace]:
    """Reserve an output path for one run; it leaves nothing hidden behind, whatever happens.

    What runs of parts completed is another matter: that stays until a run publishes it.

    Args:
        output: The path of the output. Missing folders above it are made.
        digest: The plan's digest; what a dead run with the same one completed is kept.
        is_folder: Whether the output is a folder.
        force: Whether an existing output, or parts of another plan, may be replaced.

    Raises:
        OutputExistsError: The output exists, or parts of another plan lie there, and `force` is not set.
        OutputLockedError: Another run is writing it.
        ResourceError: The folder cannot be made or written to.
    """
    workspace, made = _workspace(output, digest, is_folder=is_folder, force=force)
    try:
        descriptor = _lock_alone(workspace)
        is_kept = workspace.kept_mark.exists()
        try:
            _prepare(workspace, is_alone=True)
            is_kept = workspace.kept_mark.exists()
            yield workspace
        finally:
            # The folder goes before the lock does, so that no other run can find it half removed.
            if is_kept and workspace.has_content():  # else it was published
                shutil.rmtree(workspace.parts, ignore_errors=True)
            else:
                workspace.remove()
            os.close(descriptor)
    finally:
        _remove_empty(made)


@contextmanager
def claim_part(output: Path, digest: str, *, is_folder: bool, force: bool) -> Iterator[Workspace]:
    """Reserve an output path for several runs, each of which completes a part; what is complete stays.

    Args:
        output: The path of the output. Missing folders above it are made.
        digest: The digest of the whole plan, which all of the runs have.
        is_folder: Whether the output is a folder.
        force: Whether an existing output, or parts of another plan, may be replaced.

    Raises:
        OutputExistsError: The output exists, or parts of another plan lie there, and `force` is not set.
        OutputLockedError: A run of the whole output, or runs of parts of another plan, are writing it.
        ResourceError: The folder cannot be made or written to.
    """
    workspace, made = _workspace(output, digest, is_folder=is_folder, force=force)
    try:
        descriptor = _lock_together(workspace)
        try:
            yield workspace
        finally:
            shutil.rmtree(workspace.parts, ignore_errors=True)
            if not workspace.has_content() and try_lock(descriptor, fcntl.LOCK_EX) is Lock.HELD:
                workspace.remove()
            os.close(descriptor)
    finally:
        _remove_empty(made)


def check_claimable(output: Path, *, is_folder: bool, force: bool) -> None:
    """Make sure that an output's path can be claimed, before long work for an output that takes nothing over.

    Args:
        output: The path of the output.
        is_folder: Whether the output is a folder.
        force: As of `claim_output`, as is what is raised.
    """
    with claim_output(output, secrets.token_hex(32), is_folder=is_folder, force=force):
        pass


def _workspace(output: Path, digest: str, *, is_folder: bool, force: bool) -> tuple[Workspace, list[Path]]:
    """The hidden folder, which may be missing, and the folders above it that were made."""
    workspace = Workspace.of(output, digest, is_folder=is_folder, force=force)
    if not force:
        refuse_taken(workspace.output)
    return workspace, _make_folders(workspace.output.parent)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were missing, deepest first."""
    missing: list[Path] = []
    try:
        missing += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)  # else the output would be durable in a folder that is not
    except OSError as error:
        _remove_empty(missing)
        raise _refused(folder, error) from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _lock_alone(workspace: Workspace) -> int:
    """The descriptor of the hidden folder, locked for this run alone."""
    while True:
        descriptor = _open(workspace.folder)
        try:
            try:
                lock = try_lock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                with suppress(OSError):
                    workspace.folder.rmdir()  # where it is empty, nobody has it
                raise writing_failed(workspace.output, error) from error
            if lock is Lock.BUSY:
                raise _locked(workspace, "another run holds it")
            if is_still(workspace.folder, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock_together(workspace: Workspace) -> int:
    """The descriptor of the hidden folder, locked for runs of parts of this plan, and prepared for them."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        descriptor = _open(workspace.folder)
        try:
            if _join(workspace, descriptor):
                return descriptor
            if time.monotonic() > deadline:
                raise _locked(workspace, "a run of the whole output holds it")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_POLL_SECONDS)


def _join(workspace: Workspace, descriptor: int) -> bool:
    """Share the lock, if that is possible by now; whoever is the first prepares the folder."""
    lock = try_lock(descriptor, fcntl.LOCK_EX)
    if lock is not Lock.BUSY:
        if not is_still(workspace.folder, descriptor):
            return False
        try:
            _prepare(workspace, is_alone=lock is Lock.HELD, is_kept=True)
        except ResourceError:
            if lock is Lock.HELD and not workspace.has_content():
                workspace.remove()
            raise
    # Between giving up the one lock and getting the other another run may come in: what it left is looked at again.
    if try_lock(descriptor, fcntl.LOCK_SH) is Lock.BUSY or not is_still(workspace.folder, descriptor):
        return False
    if not workspace.is_visible():
        raise _locked(workspace, "runs of --ranks with other arguments hold it")
    return workspace.kept_mark.exists()


def _open(hidden: Path) -> int:
    attempts = 0
    while True:
        attempts += 1
        try:
            hidden.mkdir(exist_ok=True)
            return os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempts < _LOCK_ATTEMPTS:
                continue  # the run that held it has just removed it
            raise _refused(hidden.parent, error) from error


def _prepare(workspace: Workspace, *, is_alone: bool, is_kept: bool = False) -> None:
    """Make the hidden folder one of this plan.

    Args:
        workspace: What it is to be.
        is_alone: Whether no other run can be writing there.
        is_kept: Whether what is completed there outlives the run.
    """
    try:
        if is_alone:
            workspace.recover()
            if not workspace.force:
                refuse_existing(workspace.output)
        if not workspace.is_visible():
            _refuse_other_parts(workspace)
            _empty(workspace)
        elif is_alone and workspace.all_parts.exists():
            shutil.rmtree(workspace.all_parts)
        workspace.content.mkdir(exist_ok=True)
        # In one step, for runs on a file system without locks; and durable, for what is completed to be found again.
        new_mark = workspace.folder / f"{workspace.mark.name}.{workspace.run}"
        try:
            write_synced(new_mark, workspace.digest.encode())
            new_mark.replace(workspace.mark)
        except OSError:
            new_mark.unlink(missing_ok=True)
            raise
        if is_kept:
            workspace.kept_mark.touch()
    except OSError as error:
        raise writing_failed(workspace.output, error) from error


def _empty(workspace: Workspace) -> None:
    """Remove what lies in a hidden folder, for good, before the mark of another plan says that it is that one's."""
    workspace.mark.unlink(missing_ok=True)
    left = list(workspace.folder.iterdir())
    for path in left:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if left:
        sync_folder(workspace.folder)


def _refuse_other_parts(workspace: Workspace) -> None:
    """What runs of parts completed, maybe in hours, is not thrown away for an option that was mistyped."""
    if workspace.kept_mark.exists() and workspace.has_content() and not workspace.force:
        raise OutputExistsError(
            Problem(
                str(workspace.folder),
                "files that runs of --ranks completed for other arguments, other inputs or another version",
                "those of this run",
                "Give the arguments of those runs; or start anew with --force, or remove the folder",
            )
        )


def _locked(workspace: Workspace, found: str) -> OutputLockedError:
    return OutputLockedError(
        Problem(str(workspace.folder), found, "an output that no other run is writing", "Wait for it")
    )


def _refused(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        Problem(
            str(folder),
            (error.strerror or str(error)).lower(),
            "a folder that can be written to",
            "Choose another place with -o",
        )
    )
