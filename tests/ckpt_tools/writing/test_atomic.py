"""Outputs appear whole or not at all, replace what they may replace, and leave nothing hidden behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from ckpt_tools.writing import atomic, claims
from ckpt_tools.writing.atomic import Workspace, refuse_existing, sync_folder
from ckpt_tools.writing.claims import claim_output
from ckpt_tools.writing.plan import OutputBytes, OutputFile, Plan
from ckpt_tools.writing.write import execute
from surgery.errors import OutputExistsError, OutputLockedError, ResourceError


def fill(workspace: Workspace, data: bytes = b"new") -> None:
    name = "inside" if workspace.is_folder else workspace.output.name
    part = workspace.new_part()
    part.write_bytes(data)
    workspace.complete(part, name)


def write(output: Path, *, is_folder: bool = False, force: bool = False, digest: str = "d") -> None:
    with claim_output(output, digest, is_folder=is_folder, force=force) as workspace:
        fill(workspace)
        workspace.publish()


def fail_to_write(output: Path, happens: Callable[[Workspace], object]) -> None:
    with claim_output(output, "d", is_folder=False, force=False) as workspace:
        happens(workspace)
        raise ValueError("failed")


def tree(folder: Path) -> dict[str, object]:
    """What lies below a folder: the content of files, the targets of links."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


def make(path: Path, kind: str) -> None:
    """An output of an earlier run, or what else may lie in its place."""
    if kind == "file":
        path.write_bytes(b"old")
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_bytes(b"old")
    else:
        target = path.with_name("target")
        make(target, kind.removeprefix("link to a "))
        path.symlink_to(target.name)


@pytest.fixture(params=[True, False], ids=["renameat2", "plain renames"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A file system that can rename without replacing and exchange, and one (NFS) that cannot."""
    if not request.param:
        monkeypatch.setattr(atomic, "rename_new", lambda old, new: False)
        monkeypatch.setattr(atomic, "rename_exchange", lambda old, new: False)
    return bool(request.param)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_complete_output_is_published_and_nothing_else(
    tmp_path: Path, renames: bool, is_folder: bool, force: bool
) -> None:
    write(tmp_path / "out", is_folder=is_folder, force=force)
    assert tree(tmp_path) == ({"out": None, "out/inside": b"new"} if is_folder else {"out": b"new"})


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "link to a folder"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_exists_is_kept_without_force(tmp_path: Path, kind: str, is_folder: bool) -> None:
    make(tmp_path / "out", kind)
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError, match="out: expected a free path"):
        write(tmp_path / "out", is_folder=is_folder)
    assert tree(tmp_path) == before


def test_a_broken_link_exists(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(OutputExistsError):
        refuse_existing(tmp_path / "out")


@pytest.mark.parametrize("kind", ["file", "link to a file", "link to a folder"])
def test_with_force_a_file_replaces_a_file_or_a_link_and_never_what_the_link_leads_to(
    tmp_path: Path, renames: bool, kind: str
) -> None:
    make(tmp_path / "out", kind)
    before = tree(tmp_path)
    write(tmp_path / "out", force=True)
    assert tree(tmp_path) == {**before, "out": b"new"}
    assert not (tmp_path / "out").is_symlink()


def test_with_force_a_folder_replaces_a_folder_with_all_that_was_in_it(tmp_path: Path, renames: bool) -> None:
    make(tmp_path / "out", "folder")
    (tmp_path / "out" / "other").write_bytes(b"old")
    write(tmp_path / "out", is_folder=True, force=True)
    assert tree(tmp_path) == {"out": None, "out/inside": b"new"}


@pytest.mark.parametrize(
    ("kind", "is_folder"), [("folder", False), ("file", True), ("link to a file", True), ("link to a folder", True)]
)
def test_even_with_force_one_kind_does_not_replace_another(
    tmp_path: Path, renames: bool, kind: str, is_folder: bool
) -> None:
    make(tmp_path / "out", kind)
    before = tree(tmp_path)
    with pytest.raises(OSError, match="irectory"):
        write(tmp_path / "out", is_folder=is_folder, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path, renames: bool, is_folder: bool) -> None:
    def other_program() -> None:
        with claim_output(tmp_path / "out", "d", is_folder=is_folder, force=False) as workspace:
            fill(workspace)
            make(tmp_path / "out", "folder" if is_folder else "file")
            workspace.publish()

    with pytest.raises(OutputExistsError):
        other_program()
    assert tree(tmp_path) == ({"out": None, "out/inside": b"old"} if is_folder else {"out": b"old"})


def test_a_folder_that_cannot_be_put_into_place_leaves_the_old_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "folder")
    monkeypatch.setattr(atomic, "rename_exchange", lambda old, new: False)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "content":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "out", is_folder=True, force=True)
    assert tree(tmp_path) == {"out": None, "out/inside": b"old"}


def test_folders_above_the_output_are_made_and_removed_again_on_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="failed"):
        fail_to_write(tmp_path / "a/b/out", fill)
    assert tree(tmp_path) == {}
    write(tmp_path / "a/b/out")
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/out": b"new"}


def test_folders_that_were_there_or_are_in_use_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="failed"):
        fail_to_write(tmp_path / "a/b/c/out", lambda workspace: (tmp_path / "a/b/other").write_bytes(b""))
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/other": b""}


@pytest.mark.parametrize("name", ["file/out", "a/" + "x" * 300 + "/out", "a/b/circle/out", "x" * 250])
def test_a_path_where_nothing_can_lie_is_refused_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    if "circle" in name:
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/b/circle").symlink_to("circle")
    before = tree(tmp_path)
    with pytest.raises(ResourceError, match="Choose another place with -o"):
        write(tmp_path / name)
    assert tree(tmp_path) == before


def test_a_link_above_the_output_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link/out")
    assert (tmp_path / "real/out").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate("")


def test_an_output_that_another_run_writes_is_refused_until_that_run_is_gone(tmp_path: Path) -> None:
    hidden = tmp_path / ".out.pet-surgery"
    hidden.mkdir()
    (hidden / "work").write_bytes(b"of the other run")
    with held_by_another_process(hidden):
        before = tree(tmp_path)
        with pytest.raises(OutputLockedError, match="another run holds it"):
            write(tmp_path / "out")
        assert tree(tmp_path) == before
    write(tmp_path / "out")
    assert tree(tmp_path) == {"out": b"new"}


def test_a_second_run_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with claim_output(tmp_path / "out", "d", is_folder=False, force=False) as workspace:
        with pytest.raises(OutputLockedError):
            write(tmp_path / "out")
        fill(workspace)
        workspace.publish()
    assert tree(tmp_path) == {"out": b"new"}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(tmp_path / "out")
    assert tree(tmp_path) == {"out": b"new"}


def leave(folder: Path, digest: bytes) -> None:
    hidden = folder / ".out.pet-surgery"
    (hidden / "content" / "deep").mkdir(parents=True)
    (hidden / "plan.sha256").write_bytes(digest)
    (hidden / "content" / "done").write_bytes(b"done")
    (hidden / "parts" / "of a dead run").mkdir(parents=True)
    (hidden / "parts" / "of a dead run" / "half").write_bytes(b"half")
    (hidden / "link").symlink_to(folder / "precious")


def left_for(folder: Path, digest: str) -> list[str]:
    with claim_output(folder / "out", digest, is_folder=True, force=False) as workspace:
        assert not workspace.all_parts.exists()
        return sorted(str(p.relative_to(workspace.content)) for p in workspace.content.rglob("*") if p.is_file())


def test_what_a_dead_run_of_the_same_plan_completed_is_kept_and_what_it_began_is_not(tmp_path: Path) -> None:
    leave(tmp_path, b"same")
    assert left_for(tmp_path, "same") == ["done"]


@pytest.mark.parametrize("digest", [b"other", b"", b"\xff\xfe"])
def test_what_a_dead_run_of_another_plan_left_is_removed_but_not_what_its_links_lead_to(
    tmp_path: Path, digest: bytes
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_bytes(b"x")
    leave(tmp_path, digest)
    assert left_for(tmp_path, "same") == []
    assert tree(tmp_path) == {"precious": None, "precious/x": b"x"}


@pytest.mark.parametrize("kind", ["file", "link to a file", "link to a folder"])
def test_a_hidden_path_that_is_no_folder_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    make(tmp_path / ".out.pet-surgery", kind)
    before = tree(tmp_path)
    with pytest.raises(ResourceError):
        write(tmp_path / "out")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask_also_where_something_is_replaced(
    tmp_path: Path, mask: int, file: int, folder: int
) -> None:
    make(tmp_path / "out", "folder")
    (tmp_path / "out").chmod(0o777)
    before = os.umask(mask)
    try:
        entries = (OutputFile("x.safetensors", "safetensors", ()), OutputBytes("y", b"{}"))
        execute(Plan(tmp_path / "out", True, entries), force=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "out", *(tmp_path / "out").iterdir()]}
    assert modes == {"out": folder, "x.safetensors": file, "y": file}


@pytest.mark.parametrize(("code", "is_fine"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_syncs_no_folders_is_fine_and_one_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_fine: bool
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with nullcontext() if is_fine else pytest.raises(OSError, match=os.strerror(code)):
        sync_folder(tmp_path)


def test_all_folders_of_an_output_are_synced_before_it_is_published_and_the_one_above_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def sync(folder: Path) -> None:
        synced.append((folder.name, (tmp_path / "out").exists()))

    monkeypatch.setattr(atomic, "sync_folder", sync)
    with claim_output(tmp_path / "out", "d", is_folder=True, force=False) as workspace:
        part = workspace.new_part()
        part.write_bytes(b"")
        workspace.complete(part, "rank_0/x")
        workspace.publish()
    assert synced == [("content", False), ("rank_0", False), (tmp_path.name, True)]


def killed_behind(folder: Path, publish: Callable[[Workspace], object], *, force: bool = True) -> None:
    """A run that was killed when it had published, or half done so: its hidden folder is all there."""
    hidden = folder / ".out.pet-surgery"
    with claim_output(folder / "out", "d", is_folder=True, force=force) as workspace:
        fill(workspace)
        publish(workspace)
        hidden.rename(folder / "kept")
    (folder / "kept").rename(hidden)


def test_a_kill_behind_the_exchange_does_not_make_the_older_output_a_part_of_the_next(tmp_path: Path) -> None:
    make(tmp_path / "out", "folder")
    killed_behind(tmp_path, Workspace.put_in_place)
    assert (tmp_path / ".out.pet-surgery" / "content" / "inside").read_bytes() == b"old"
    with claim_output(tmp_path / "out", "d", is_folder=True, force=True) as workspace:
        assert not workspace.has_content()
    assert tree(tmp_path) == {"out": None, "out/inside": b"new"}


def test_a_kill_before_the_exchange_keeps_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "out", "folder")

    def killed(old: Path, new: Path) -> bool:
        raise KeyboardInterrupt

    def publish(workspace: Workspace) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(atomic, "rename_exchange", killed)
            with pytest.raises(KeyboardInterrupt):
                workspace.put_in_place()

    killed_behind(tmp_path, publish)
    with claim_output(tmp_path / "out", "d", is_folder=True, force=True) as workspace:
        assert (workspace.content / "inside").read_bytes() == b"new"


def test_an_output_that_was_moved_aside_returns_when_the_run_was_killed_then(tmp_path: Path) -> None:
    make(tmp_path / "out", "folder")
    killed_behind(tmp_path, lambda workspace: (tmp_path / "out").rename(workspace.folder / "replaced"))
    assert not (tmp_path / "out").exists()
    with claim_output(tmp_path / "out", "of another plan", is_folder=True, force=True):
        pass
    assert tree(tmp_path) == {"out": None, "out/inside": b"old"}


def test_what_a_killed_run_left_hidden_behind_its_output_goes_with_the_next_that_is_refused(tmp_path: Path) -> None:
    killed_behind(tmp_path, Workspace.put_in_place, force=False)
    with pytest.raises(OutputExistsError):
        write(tmp_path / "out", is_folder=True)
    assert tree(tmp_path) == {"out": None, "out/inside": b"new"}


def test_what_waits_to_be_taken_over_stays_when_a_run_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", "folder")
    killed_behind(tmp_path, lambda workspace: None)
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError):
        write(tmp_path / "out", is_folder=True)
    assert tree(tmp_path) == before


def test_what_another_run_holds_stays_when_a_run_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", "folder")
    with claim_output(tmp_path / "out", "d", is_folder=True, force=True) as workspace:
        with pytest.raises(OutputExistsError):
            write(tmp_path / "out", is_folder=True)
        assert workspace.folder.is_dir()


def test_folders_that_are_made_above_an_output_are_synced_in_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(claims, "sync_folder", synced.append)
    write(tmp_path / "a/b/out")
    assert {tmp_path, tmp_path / "a"} <= set(synced)
