"""The calls that Python lacks, made on real file systems."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_tools.writing import linux
from ckpt_tools.writing.linux import preallocate, rename_exchange, rename_new, start_writeback

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access(SHARED_MEMORY, os.W_OK):
        pytest.skip("no tmpfs to write to")
    path = SHARED_MEMORY / f"pet-surgery-{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


LIMITS = """
import resource
from ckpt_tools.writing.linux import allow_open_files, open_files_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
assert open_files_limit() == 100
allow_open_files()
assert open_files_limit() == min(hard if hard > 0 else 2**16, 2**16)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
allow_open_files()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 300)
"""


def test_a_command_may_open_as_many_files_as_the_system_allows_and_no_more() -> None:
    subprocess.run([sys.executable, "-c", LIMITS], check=True)


@pytest.mark.parametrize("size", [0, 1, 5000, 2**20])
def test_a_file_gets_its_size_and_its_room(folder: Path, size: int) -> None:
    with open(folder / "x", "wb") as file:
        preallocate(file.fileno(), size)
    info = (folder / "x").stat()
    assert info.st_size == size
    assert info.st_blocks * 512 >= size


def test_what_was_written_stays(folder: Path) -> None:
    with open(folder / "x", "wb") as file:
        os.pwrite(file.fileno(), b"abc", 0)
        preallocate(file.fileno(), 10)
    assert (folder / "x").read_bytes() == b"abc" + bytes(7)


@pytest.mark.parametrize("folder", ["tmpfs"], indirect=True)
def test_a_lack_of_room_is_told_before_anything_is_written(folder: Path) -> None:
    # More than all of a tmpfs is refused at once; a disk would be filled before it is.
    needed = shutil.disk_usage(folder).total + 2**30
    with open(folder / "x", "wb") as file, pytest.raises(OSError, match="No space left") as caught:
        preallocate(file.fileno(), needed)
    assert caught.value.errno == errno.ENOSPC


class Libc:
    """A C library whose calls fail, or that lacks them."""

    def __init__(self, **codes: int) -> None:
        self._codes = codes

    def __getattr__(self, name: str) -> object:
        if name not in self._codes:
            raise AttributeError(name)

        def call(*arguments: object) -> int:
            ctypes.set_errno(self._codes[name])
            return -1

        return call


@pytest.mark.parametrize("libc", [Libc(), Libc(fallocate=errno.EOPNOTSUPP), Libc(fallocate=errno.EINTR)])
def test_a_file_system_that_promises_no_room_still_gives_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libc: Libc
) -> None:
    monkeypatch.setattr(linux, "_libc", lambda: libc)
    with open(tmp_path / "x", "wb") as file:
        preallocate(file.fileno(), 5000)
    assert (tmp_path / "x").stat().st_size == 5000


@pytest.mark.parametrize("libc", [Libc(), Libc(renameat2=errno.EINVAL), Libc(renameat2=errno.ENOSYS)])
def test_a_system_without_such_renames_says_so_and_renames_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libc: Libc
) -> None:
    monkeypatch.setattr(linux, "_libc", lambda: libc)
    (tmp_path / "a").write_bytes(b"a")
    assert not rename_new(tmp_path / "a", tmp_path / "b")
    assert not rename_exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_rename_to_a_free_name_takes_place(folder: Path) -> None:
    (folder / "a ä\n").write_bytes(b"a")
    assert rename_new(folder / "a ä\n", folder / "b")
    assert (folder / "b").read_bytes() == b"a"
    assert not (folder / "a ä\n").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "link"])
def test_a_rename_replaces_nothing(folder: Path, kind: str) -> None:
    (folder / "a").mkdir()
    if kind == "file":
        (folder / "b").write_bytes(b"b")
    elif kind == "link":
        (folder / "b").symlink_to("nowhere")
    else:
        (folder / "b").mkdir()
        if kind == "folder":
            (folder / "b" / "x").write_bytes(b"")
    with pytest.raises(FileExistsError):
        rename_new(folder / "a", folder / "b")
    assert (folder / "a").is_dir()


def test_two_folders_are_exchanged_with_what_is_in_them(folder: Path) -> None:
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / f"in {name}").write_bytes(b"")
    assert rename_exchange(folder / "a", folder / "b")
    assert (folder / "a" / "in b").exists()
    assert (folder / "b" / "in a").exists()


def test_a_rename_that_fails_says_why(tmp_path: Path) -> None:
    for rename in (rename_new, rename_exchange):
        with pytest.raises(FileNotFoundError, match="b"):
            rename(tmp_path / "a", tmp_path / "b")


def test_early_writeback_is_a_hint_that_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        start_writeback(file.fileno(), 0, 2**40)
    reader, writer = os.pipe()
    start_writeback(writer, 0, 1)  # refused, and nobody need know
    os.close(reader)
    os.close(writer)
    assert path.read_bytes() == b"content"


def test_memory_that_was_freed_stays_with_the_process() -> None:
    """Otherwise every array of a tile is fetched from the kernel again, page by page."""
    program = (
        "import resource, numpy as np\n"
        "from ckpt_tools.writing.linux import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(3): np.ones(2**20, np.uint8)\n"
        "before = faults()\n"
        "for _ in range(200): np.ones(2**20, np.uint8)\n"
        "print(faults() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 200 * 10  # of the 256 pages that each array has
