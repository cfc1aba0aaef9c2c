"""What fuzzing found and what it ended with, read again by every reader; `run.py` says how they came to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import environment
from fuzz_targets import TARGETS

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the readers did, in a process of their own, whose memory is limited."""
    command = [sys.executable, HERE / "replay.py", tmp_path_factory.mktemp("fuzz")]
    outcome = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout)


def test_no_inputs_lie_where_no_reader_has_them() -> None:
    assert {folder.name for kind in ("corpus", "finds") for folder in (HERE / kind).iterdir()} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_is_read_or_refused_in_bounded_time_and_memory(replayed: dict[str, Any], target: str) -> None:
    assert replayed[target]["inputs"] > 0
    assert replayed[target]["finds"] == []
