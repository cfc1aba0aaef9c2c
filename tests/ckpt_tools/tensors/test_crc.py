"""A file's CRC, put together of what was read of it."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.tensors import crc as crc_module
from ckpt_tools.tensors.crc import CrcPieces

DATA = random.Random(0).randbytes(300)


def read(start: int, length: int) -> bytes:
    return DATA[start : start + length]


def pieces_of(*spans: tuple[int, int]) -> CrcPieces:
    pieces = CrcPieces()
    for start, stop in spans:
        pieces.add(start, memoryview(DATA)[start:stop])
    return pieces


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """The file in stretches, in any order."""
    edges = sorted({0, len(DATA), *draw(st.lists(st.integers(0, len(DATA)), max_size=12))})
    return draw(st.permutations(list(itertools.pairwise(edges))))


@settings(max_examples=300, deadline=None)
@given(spans=cuts())
def test_stretches_in_any_order_make_the_crc_of_the_whole(spans: list[tuple[int, int]]) -> None:
    pieces = pieces_of(*spans)
    assert len(pieces.pieces()) == 1
    assert pieces.whole(len(DATA), read, 0) == zlib.crc32(DATA)


@settings(max_examples=500, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA))).map(sorted).map(tuple), max_size=12),
    limit=st.integers(0, len(DATA)),
)
def test_whatever_was_read_the_crc_is_right_or_none(spans: list[tuple[int, int]], limit: int) -> None:
    pieces = pieces_of(*spans)
    assert pieces.whole(len(DATA), read, limit) in (None, zlib.crc32(DATA))
    assert pieces.whole(len(DATA), read, len(DATA)) == zlib.crc32(DATA)


def test_what_is_missing_is_read_up_to_a_limit() -> None:
    pieces = pieces_of((10, 100), (120, 300))
    assert pieces.whole(300, read, 29) is None
    assert pieces.whole(300, read, 30) == zlib.crc32(DATA)
    assert pieces.whole(290, read, 300) is None  # what ends behind the end is of another file


def test_pieces_of_another_process_count() -> None:
    first, second = pieces_of((0, 100), (200, 300)), pieces_of((100, 200))
    first.add_pieces(second.pieces())
    assert first.pieces() == [(0, 300, zlib.crc32(DATA))]
    assert CrcPieces(first.pieces()).whole(300, read, 0) == zlib.crc32(DATA)


def test_a_file_of_which_columns_are_read_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crc_module, "_MAX_PIECES", 10)
    pieces = pieces_of(*((start, start + 1) for start in range(0, 30, 2)))
    assert pieces.pieces() == []
    assert pieces.whole(300, read, 300) is None
