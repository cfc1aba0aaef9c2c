"""Keep of what fuzzing ended with the smallest inputs that go everywhere: `minimise.py [TARGET ...]`, after `run.py`.

Of the inputs of `fuzz-work/corpus/TARGET/`, of `corpus/TARGET/` and of the seeds, from the smallest on, those stay in
`corpus/TARGET/` of which a reader goes a step, from one line to another, that it goes of no smaller one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from fuzz_limits import examine  # noqa: E402
from fuzz_targets import TARGETS  # noqa: E402

PACKAGES = (str(ROOT / "ckpt_tools"), str(ROOT / "surgery"))

Step = tuple[str, int, int]


def main(*names: str) -> None:
    """Minimise the inputs of these targets, or of all."""
    for name in names or TARGETS:
        with tempfile.TemporaryDirectory() as scratch:
            kept = _smallest_that_cover(name, Path(scratch))
        folder = HERE / "corpus" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for data in kept:
            (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
        print(json.dumps({"target": name, "inputs": len(kept), "bytes": sum(map(len, kept))}), flush=True)


def _smallest_that_cover(name: str, scratch: Path) -> list[bytes]:
    target = TARGETS[name]
    folders = (ROOT / "fuzz-work" / "corpus" / name, HERE / "corpus" / name)
    inputs = {path.read_bytes() for folder in folders if folder.is_dir() for path in folder.iterdir()}
    folder = scratch / "input"
    folder.mkdir()
    target.prepare(folder)
    covered: set[Step] = set()
    kept = []
    for data in sorted(inputs | set(target.seeds()), key=lambda data: (len(data), data)):
        with _traced() as steps:
            find = examine(target, folder, data)
        assert find is None, find
        if not steps <= covered:
            covered |= steps
            kept.append(data)
    return kept


@contextmanager
def _traced() -> Iterator[set[Step]]:
    """The steps that the packages under test go within the block."""
    steps: set[Step] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGES):
            return None
        line = frame.f_lineno
        if event == "line":
            steps.add((frame.f_code.co_filename, last.get(id(frame), 0), line))
        last[id(frame)] = line if event != "return" else 0
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(before)


if __name__ == "__main__":
    main(*sys.argv[1:])
