"""`faults.md` names a test for each fault, and each test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from malformed import FILES, FOLDERS

HERE = Path(__file__).parent
ROWS = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", (HERE / "faults.md").read_text(), re.MULTILINE)


def test_every_fault_has_a_row() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 59))


@pytest.mark.parametrize(("number", "tests"), ROWS)
def test_every_test_of_a_fault_exists_and_has_the_fault(number: str, tests: str) -> None:
    named = re.findall(r"`([^`]+)::([^`]+)`", tests)
    assert named
    for path, function in named:
        source = (HERE / path).read_text()
        assert f"def {function}(" in source, f"{path}::{function}"
        # The tests that go through many faults have an entry for this one.
        if "malformed_file" in function:
            assert any(name.startswith(f"{number} ") for name in FILES)
        elif "malformed_folder" in function:
            assert any(name.startswith(f"{number} ") for name in FOLDERS)
        elif "ranks_that_do_not_fit" in function:
            assert f'"{number} ' in source
