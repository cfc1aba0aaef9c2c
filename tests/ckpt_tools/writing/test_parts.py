"""Ranks as users give them, and the part of a plan that they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_tools.writing.parts import parse_ranks, part_of
from ckpt_tools.writing.plan import OutputBytes, OutputFile, Plan
from surgery.errors import UsageError

PLAN = Plan(
    Path("out"),
    True,
    (
        *(OutputFile(f"rank_{rank}/x.ckpt", "ckpt", (), rank=rank) for rank in range(4)),
        OutputFile("rank_3/y.ckpt", "ckpt", (), rank=3),
        OutputBytes("index.json", b"{}"),
    ),
)


@pytest.mark.parametrize(
    ("given", "means", "text"),
    [
        ("0-63", set(range(64)), "0-63"),
        ("5", {5}, "5"),
        ("8,0-3", {0, 1, 2, 3, 8}, "0-3,8"),
        (" 4 - 6 , 5-9, 9", {4, 5, 6, 7, 8, 9}, "4-9"),
        ("0-1,2-3", {0, 1, 2, 3}, "0-3"),
        (range(2, 5), {2, 3, 4}, "2-4"),
        ([7, 7], {7}, "7"),
        ("0-999999999", None, "0-999999999"),
    ],
)
def test_numbers_and_ranges_are_read_and_put_in_order(given: object, means: set[int] | None, text: str) -> None:
    ranks = parse_ranks(given)  # type: ignore[arg-type]
    assert str(ranks) == text
    assert str(parse_ranks(text)) == text
    if means is not None:
        assert {rank for rank in range(200) if rank in ranks} == means


@pytest.mark.parametrize("given", ["", "a", "3-1", "-1", "1-", "1,,2", "0:3", "1.5", "9999999999", [], [-1], [0.5]])
def test_anything_else_is_refused_with_an_example(given: object) -> None:
    with pytest.raises(UsageError, match=r"--ranks: expected ranks such as 0-63 or 0-3,8"):
        parse_ranks(given)  # type: ignore[arg-type]


def test_a_part_has_all_files_of_its_ranks_and_nothing_that_completes_the_output() -> None:
    part = part_of(PLAN, parse_ranks("1,3"), 4)
    assert part is not None
    assert [entry.name for entry in part.entries] == ["rank_1/x.ckpt", "rank_3/x.ckpt", "rank_3/y.ckpt"]
    assert (part.output, part.is_folder) == (PLAN.output, True)
    assert part_of(PLAN, None, 4) is None


def test_ranks_that_the_output_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="expected ranks of 0-3, as in --dst-strategy, found 2-4"):
        part_of(PLAN, parse_ranks("2-4"), 4)
    with pytest.raises(UsageError, match=r"an output for ranks, found 0\. Give --dst-strategy"):
        part_of(PLAN, parse_ranks("0"), 0)
