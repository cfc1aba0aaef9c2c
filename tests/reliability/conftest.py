"""Folders on a disk in memory, where there is one, and a table of what was tried."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder; in memory, where thousands of runs wait for no disk."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=_MEMORY, prefix="reliability-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests said that they tried, summed up for each."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())]
    for report in reports:
        for name, value in report.user_properties if report.when == "call" else ():
            totals[report.nodeid.split("[")[0]][name] += value
    if totals:
        terminalreporter.section("what was tried")
    for test, counts in totals.items():
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        terminalreporter.line(f"{test.rpartition('::')[2]}\n    {told}")
