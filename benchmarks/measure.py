"""Whole processes measured from outside: wall-clock time and peak anonymous memory, in pairs that take turns."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command.

    Attributes:
        seconds: Wall-clock time from start to end.
        anonymous_bytes: The most anonymous memory (RssAnon: heap, stacks; no page cache, no mapped files) that was
            seen, sampled every 5 ms.
    """

    seconds: float
    anonymous_bytes: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A command that takes part.

    Attributes:
        name: What it is called in the table.
        command: Its words.
        output: What it writes; removed before each run, outside of the measured time.
    """

    name: str
    command: Sequence[str]
    output: Path


def measure(contender: Contender) -> Run:
    """Run a command once.

    Raises:
        RuntimeError: It failed; with what it printed.
    """
    subprocess.run(["rm", "-rf", str(contender.output)], check=True)
    contender.output.parent.mkdir(parents=True, exist_ok=True)
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(contender.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    printed, peak = b"", 0
    while process.poll() is None:
        peak = max(peak, _anonymous_bytes(process.pid))
        printed += process.stdout.read() or b""
        time.sleep(_SAMPLE_SECONDS)
    seconds = time.perf_counter() - started
    printed += process.stdout.read() or b""
    if process.returncode != 0:
        raise RuntimeError(f"{contender.name} exited with {process.returncode}:\n{printed.decode(errors='replace')}")
    return Run(seconds, peak)


def compare(first: Contender, second: Contender, runs: int, prepare: Callable[[], None]) -> tuple[list[Run], list[Run]]:
    """Run two commands in turn, A B A B ..., after one run of each that does not count.

    Args:
        first: A.
        second: B.
        runs: Counted runs of each.
        prepare: Called before every run, outside of the measured time: brings the inputs into the page cache.
    """
    results: tuple[list[Run], list[Run]] = ([], [])
    for turn in range(runs + 1):
        for contender, kept in zip((first, second), results, strict=True):
            prepare()
            run = measure(contender)
            print(f"  {contender.name}: {run.seconds:.2f} s, {run.anonymous_bytes / 1e6:.0f} MB", file=sys.stderr)
            if turn > 0:
                kept.append(run)
    for contender in (first, second):
        subprocess.run(["rm", "-rf", str(contender.output)], check=True)
    return results


def warm(*paths: Path) -> Callable[[], None]:
    """Something that reads files (or folders of files) into the page cache."""

    def read() -> None:
        for path in paths:
            for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
                with file.open("rb", buffering=0) as opened:
                    while opened.read(2**24):
                        pass

    return read


def row(first: Contender, second: Contender, results: tuple[list[Run], list[Run]], target: str) -> str:
    """A line of the results' table: medians, and the median of the ratios pair by pair."""
    a, b = results
    ratios = sorted(x.seconds / y.seconds for x, y in zip(a, b, strict=True))
    memory = [statistics.median(run.anonymous_bytes for run in runs) / 1e6 for runs in results]
    return (
        f"| {first.name} | {second.name} | {statistics.median(run.seconds for run in a):.2f} s "
        f"| {statistics.median(run.seconds for run in b):.2f} s "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
        f"| {memory[0]:.0f} MB | {memory[1]:.0f} MB | {target} |"
    )


HEADER = (
    "| A | B | A, median | B, median | A / B, median of pairs (range) | A, peak anonymous | B | target |\n"
    "|---|---|---|---|---|---|---|---|"
)


def _anonymous_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0
