"""Names that a mistaken one may have meant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from surgery.near import near_names

NAMES = [f"model.layers.{layer}.attention.{cell}.weight" for layer in range(40) for cell in ("wq", "wk", "wv", "wo")]


def test_the_nearest_name_comes_first() -> None:
    found = near_names("model.layers.7.attention.wqq.weight", NAMES)
    assert found[0] == "model.layers.7.attention.wq.weight"
    assert len(found) == 3


def test_a_name_without_a_common_component_is_found_by_its_letters() -> None:
    assert near_names("lmhead", ["lm_head", "something.else.entirely"]) == ["lm_head"]


def test_what_resembles_nothing_finds_nothing() -> None:
    assert near_names("zzz", NAMES) == []


@given(st.permutations(NAMES[:12]))
def test_the_order_of_the_candidates_does_not_matter(names: list[str]) -> None:
    name = "model.layers.1.attention.dense.weight"
    assert near_names(name, names) == near_names(name, sorted(names))


@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=20), st.integers(0, 5))
def test_only_candidates_are_found_and_at_most_n(name: str, candidates: list[str], n: int) -> None:
    found = near_names(name, candidates, n)
    assert len(found) <= n
    assert set(found) <= set(candidates)


def test_names_of_any_length_are_compared_in_bounded_time() -> None:
    """Letter by letter these two take hours."""
    long = "a" * 60_000
    assert near_names(f"{long}x", [f"{long}y", "b" * 60_000]) == [f"{long}y"]
