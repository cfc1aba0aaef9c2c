"""What errors say: all that is wrong, in a message that a terminal can show."""

from __future__ import annotations

import pickle

from surgery.errors import CorruptInputError, Problem


def test_a_problem_says_where_what_was_expected_what_was_found_and_what_to_do() -> None:
    assert str(Problem("x.ckpt", "2 bytes", "4", "Copy it")) == "x.ckpt: expected 4, found 2 bytes. Copy it."
    assert str(Problem("x.ckpt", "an empty file", remedy="Is it x?")) == "x.ckpt: an empty file. Is it x?"


def test_what_an_input_says_at_length_is_shown_in_part() -> None:
    text = str(Problem("w" * 10_000, "a" + "f" * 10**6 + "z", "e" * 10**6, "Near names: " + "n" * 10**6))
    assert len(text) < 10_500
    assert "found aff" in text
    assert "fz." in text


def test_of_very_many_problems_the_first_are_told_and_all_are_kept() -> None:
    error = CorruptInputError(Problem(f"tensor {number}", "damage") for number in range(5000))
    assert len(error.problems) == 5000
    assert error.lines[0] == "tensor 0: damage."
    assert error.lines[-1] == "And 4000 more."
    assert str(error) == "\n".join(error.lines)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as Ray sends it
