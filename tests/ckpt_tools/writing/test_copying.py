"""Untouched bytes reach the output, whatever the kernel can do and however little it does at a time."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.formats.model import Payload
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import ByteRun, Stored
from ckpt_tools.tensors.sources import Source, close_sources, open_source
from ckpt_tools.writing import copying
from ckpt_tools.writing.copying import Copy, coalesce, copies_of, copy_range, group, write_at
from surgery.errors import InputChangedError

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    (tmp_path / "in").write_bytes(CONTENT)
    yield open_source(tmp_path / "in")
    close_sources()


def copied(piece: Copy, tmp_path: Path) -> bytes:
    with open(tmp_path / "out", "wb+") as file:
        copy_range(piece, file.fileno())
        file.seek(piece.offset)
        return file.read()


PIECE = (100, 7, 9000)
EXPECTED = CONTENT[100:9100]


def test_a_stretch_is_copied_to_its_place(source: Source, tmp_path: Path) -> None:
    assert copied(Copy(source, *PIECE), tmp_path) == EXPECTED
    assert (tmp_path / "out").stat().st_size == 7 + 9000
    assert copied(Copy(source, 0, 0, 0), tmp_path) == b""


@pytest.mark.parametrize("code", ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EBADF", "ETXTBSY", "EPERM"])
@pytest.mark.parametrize("first", [0, 1000])
def test_where_the_kernel_refuses_bytes_are_read_and_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, first: int
) -> None:
    real = os.copy_file_range
    calls: list[int] = []

    def refuse(from_: int, to: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) == 1 and first:
            return real(from_, to, first, *offsets)
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert copied(Copy(source, *PIECE), tmp_path) == EXPECTED
    assert len(calls) == (2 if first else 1), "what was refused once is not tried again"


def test_a_kernel_that_copies_little_at_a_time_is_asked_again(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, count, *offsets: real(a, b, min(count, 1234), *offsets))
    assert copied(Copy(source, *PIECE), tmp_path) == EXPECTED


def test_a_kernel_that_copies_nothing_is_no_endless_loop(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
    assert copied(Copy(source, *PIECE), tmp_path) == EXPECTED


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_that_is_one_is_no_reason_to_try_another_way(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*arguments: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        copied(Copy(source, *PIECE), tmp_path)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_source_that_ended_early_is_noticed(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_kernel: bool
) -> None:
    if not by_kernel:
        monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
    copied(Copy(source, 0, 0, 10), tmp_path)
    os.truncate(source.path, 5000)
    with pytest.raises(InputChangedError):
        copied(Copy(source, *PIECE), tmp_path)


def test_plain_copies_are_made_in_bounded_pieces(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
    monkeypatch.setattr(copying, "_PLAIN_CHUNK", 1000)
    sizes: list[int] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: (sizes.append(len(data)), real(fd, data, offset))[1])
    assert copied(Copy(source, *PIECE), tmp_path) == EXPECTED
    assert max(sizes) == 1000


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    with open(tmp_path / "out", "wb") as file:
        write_at(file.fileno(), memoryview(CONTENT), 3)
    assert (tmp_path / "out").read_bytes() == b"\0\0\0" + CONTENT


A, B = (Source(name, 10**9, 0, inode, 0) for inode, name in enumerate(("/a", "/b")))


@st.composite
def copies(draw: st.DrawFn) -> list[Copy]:
    """Copies into an output without holes, from places that often follow each other."""
    found: list[Copy] = []
    place, offset = 0, 0
    for _ in range(draw(st.integers(0, 12))):
        length = draw(st.integers(1, 50))
        place = draw(st.just(place) | st.integers(0, 100))
        offset += draw(st.just(0) | st.integers(0, 3))
        found.append(Copy(draw(st.sampled_from([A, A, B])), place, offset, length))
        place, offset = place + length, offset + length
    return found


def bytes_of(found: list[Copy]) -> list[tuple[Source, int, int]]:
    return [(copy.source, copy.source_offset + i, copy.offset + i) for copy in found for i in range(copy.length)]


@settings(deadline=None)
@given(copies())
def test_joining_copies_keeps_every_byte_and_leaves_nothing_to_join(found: list[Copy]) -> None:
    joined = list(coalesce(found))
    assert bytes_of(joined) == bytes_of(found)
    assert list(coalesce(joined)) == joined
    for first, second in itertools.pairwise(joined):
        follows = first.source_offset + first.length == second.source_offset
        assert not (first.source == second.source and follows and first.offset + first.length == second.offset)


@settings(deadline=None)
@given(copies(), st.integers(1, 60))
def test_groups_hold_every_byte_and_are_of_one_size(found: list[Copy], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_COPY_CHUNK", size)
        groups = list(group(found))
    assert [byte for pieces in groups for byte in bytes_of(pieces)] == bytes_of(found)
    sizes = [sum(piece.length for piece in pieces) for pieces in groups]
    assert all(held == size for held in sizes[:-1])
    assert all(0 < held <= size for held in sizes[-1:])


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=5), st.lists(st.integers(1, 9), max_size=5))
def test_stretches_are_cut_where_the_input_or_the_output_is_cut(lengths: list[int], cuts: list[int]) -> None:
    runs = tuple(ByteRun(A, 100 * number, length) for number, length in enumerate(lengths))
    total = sum(lengths)
    edges = sorted({0, *(min(sum(cuts[: n + 1]), total) for n in range(len(cuts))), total})
    payloads = [Payload(1000 * n + start, 0, start, stop) for n, (start, stop) in enumerate(itertools.pairwise(edges))]
    found = list(copies_of(Stored(BY_NAME["int8"], (total,), runs), payloads))
    wanted_from = [run.offset + i for run in runs for i in range(run.length)]
    wanted_to = [payload.offset + i for payload in payloads for i in range(payload.stop - payload.start)]
    assert [(place, offset) for _, place, offset in bytes_of(found)] == list(zip(wanted_from, wanted_to, strict=True))
