"""Inputs are regular files that stay as they were; descriptors are few, and none is closed under a reader."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckpt_tools.tensors import sources
from ckpt_tools.tensors.sources import (
    Source,
    check_unchanged,
    close_sources,
    open_source,
    opened,
    read_exactly,
    read_into,
)
from surgery.errors import CorruptInputError, InputChangedError, InputMissingError, ResourceError

LIMIT = sources.MAX_OPEN_SOURCES


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    close_sources()
    yield
    close_sources()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def files(folder: Path, count: int) -> list[Source]:
    for number in range(count):
        (folder / str(number)).write_bytes(f"content {number}".encode())
    return [open_source(folder / str(number)) for number in range(count)]


def test_a_source_is_an_absolute_path_and_what_tells_the_file_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("x")
    monkeypatch.chdir(tmp_path)
    info = (tmp_path / "x").stat()
    assert open_source("x") == Source(str(tmp_path / "x"), 5, info.st_mtime_ns, info.st_ino, info.st_dev)
    assert open_source(Path("link")).inode == info.st_ino


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("nothing", "broken", "circle", "x" * 300):
        with pytest.raises(InputMissingError, match=f"{name}: expected a readable file"):
            open_source(tmp_path / name)


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket may have 108 bytes
        server.bind("socket")
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero")):
            with pytest.raises(CorruptInputError, match="a pipe, a socket or a device"):
                open_source(path)
    with pytest.raises(CorruptInputError, match="a folder"):
        open_source(tmp_path)


def test_a_pipe_that_took_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    (source,) = files(tmp_path, 1)
    Path(source.path).unlink()
    os.mkfifo(source.path)
    for look in (lambda: read_exactly(source, 0, 1), lambda: check_unchanged(source)):
        with pytest.raises(InputChangedError):
            look()


def test_any_stretch_is_read(tmp_path: Path) -> None:
    (source,) = files(tmp_path, 1)
    assert read_exactly(source, 0, 9) == b"content 0"
    assert read_exactly(source, 3, 4) == b"tent"
    assert read_exactly(source, 9, 0) == b""
    buffer = bytearray(b"......")
    read_into(source, 0, memoryview(buffer)[2:4])
    assert buffer == b"..co.."


def test_a_short_read_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = files(tmp_path, 1)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:2]], offset))
    assert read_exactly(source, 1, 7) == b"ontent "


def test_a_read_behind_the_end_is_a_change(tmp_path: Path) -> None:
    (source,) = files(tmp_path, 1)
    with pytest.raises(InputChangedError):
        read_exactly(source, 5, 5)
    with pytest.raises(InputChangedError):
        read_exactly(source, 100, 1)


def test_an_error_of_the_disk_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = files(tmp_path, 1)

    def fail(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ResourceError, match="0, byte 3: expected to read it, found Input/output error"):
        read_exactly(source, 3, 4)


def test_a_file_that_cannot_be_opened_any_more_is_no_missing_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = files(tmp_path, 1)

    def fail(*arguments: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ResourceError, match="too many open files"):
        read_exactly(source, 0, 1)


@pytest.mark.parametrize("change", ["grown", "touched", "replaced", "removed"])
def test_a_change_is_noticed(tmp_path: Path, change: str) -> None:
    (source,) = files(tmp_path, 1)
    check_unchanged(source)
    path, data = Path(source.path), Path(source.path).read_bytes()
    if change == "grown":
        path.write_bytes(data + b"x")
        os.utime(path, ns=(source.mtime_ns, source.mtime_ns))
    elif change == "touched":
        os.utime(path, ns=(1, source.mtime_ns + 1))
    else:
        path.rename(tmp_path / "old")
        if change == "replaced":
            path.write_bytes(data)
            os.utime(path, ns=(source.mtime_ns, source.mtime_ns))
    with pytest.raises(InputChangedError):
        check_unchanged(source)
    with pytest.raises(InputChangedError):
        read_exactly(source, 0, 1)


def test_reading_does_not_change_a_source(tmp_path: Path) -> None:
    (source,) = files(tmp_path, 1)
    os.utime(source.path, ns=(1, source.mtime_ns))
    read_exactly(source, 0, 5)
    check_unchanged(source)
    assert open_source(source.path) == source


def test_a_file_is_opened_once(tmp_path: Path) -> None:
    (source,) = files(tmp_path, 1)
    with opened(source) as first, opened(open_source(source.path)) as second:
        assert first == second
    with opened(source) as again:
        assert again == first


def test_descriptors_are_bounded_and_every_file_is_still_read(tmp_path: Path) -> None:
    found, before = files(tmp_path, LIMIT + 20), descriptors()
    for _ in range(2):
        for number, source in enumerate(found):
            assert read_exactly(source, 0, source.size) == f"content {number}".encode()
            assert descriptors() - before <= LIMIT
    close_sources()
    assert descriptors() == before


def test_the_least_recently_used_is_closed_first(tmp_path: Path) -> None:
    found = files(tmp_path, LIMIT + 1)
    for source in [*found[:LIMIT], found[0], found[LIMIT]]:
        read_exactly(source, 0, 1)
    Path(found[0].path).unlink()
    assert read_exactly(found[0], 0, 1) == b"c", "it is still open"
    Path(found[1].path).unlink()
    with pytest.raises(InputChangedError):
        read_exactly(found[1], 0, 1)


def test_no_descriptor_in_use_is_closed_however_many_there_are(tmp_path: Path) -> None:
    found, before = files(tmp_path, LIMIT + 10), descriptors()
    with ExitStack() as stack:
        held = [stack.enter_context(opened(source)) for source in found]
        for number, descriptor in enumerate(held):
            assert os.pread(descriptor, 100, 0) == f"content {number}".encode()
        close_sources()
        assert descriptors() - before == LIMIT + 10
    close_sources()
    assert descriptors() == before


def test_many_threads_read_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_OPEN_SOURCES", 5)
    found, before = files(tmp_path, 40), descriptors()
    right: list[bool] = []

    def read(first: int) -> None:
        for step in range(200):
            number = (first + 7 * step) % len(found)
            right.append(read_exactly(found[number], 0, found[number].size) == f"content {number}".encode())

    threads = [threading.Thread(target=read, args=(first,)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * (16 * 200)
    close_sources()
    assert descriptors() == before
