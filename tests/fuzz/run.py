"""Coverage-guided fuzzing of every reader: `make fuzz`, or `python tests/fuzz/run.py [TARGET ...] --seconds N`.

Each target runs in a process of its own, for so long. What is found is written to `fuzz-work/finds/TARGET/`, each fault
once, with its traceback beside it, and the exit code is 1. A find is mended with a test, and its input goes into
`tests/fuzz/finds/TARGET/`, where `test_replay.py` has it for good. `minimise.py` puts what covers most into
`tests/fuzz/corpus/TARGET/`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from fuzz_targets import TARGETS  # noqa: E402

CORPUS = Path(__file__).with_name("corpus")
WORK = ROOT / "fuzz-work"
MAX_INPUT_BYTES = 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    arguments = parser.parse_args()
    finds = [_run(name, arguments.seconds) for name in arguments.targets or TARGETS]
    return 1 if any(finds) else 0


def _run(name: str, seconds: int) -> int:
    """Fuzz one target; how much was found. What it covers stays in `fuzz-work`, where the next run begins."""
    corpus, finds = WORK / "corpus" / name, WORK / "finds" / name
    shutil.rmtree(finds, ignore_errors=True)
    for folder in (corpus, finds, CORPUS / name):
        folder.mkdir(parents=True, exist_ok=True)
    words = WORK / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in TARGETS[name].words))
    with tempfile.TemporaryDirectory() as scratch:
        _write_seeds(Path(scratch), TARGETS[name].seeds())
        told = _child(
            name,
            [str(corpus), str(CORPUS / name), scratch],
            f"-max_total_time={seconds}",
            f"-max_len={MAX_INPUT_BYTES}",
            *([f"-dict={words}"] if TARGETS[name].words else []),
            f"-artifact_prefix={finds}/stopped-",
            "-timeout=60",
            "-rss_limit_mb=0",
            "-print_final_stats=1",
        )
    done = re.search(r"number_of_executed_units: (\d+)", told.stderr)
    covered = re.findall(r" cov: (\d+) ft: (\d+)", told.stderr)
    found = sorted({path.stem for path in finds.iterdir()})
    executions = int(done[1]) if done else 0
    if told.returncode or not executions:
        print(_without_instrumenting(told.stderr)[-2000:], file=sys.stderr)
        found.append("stopped")
    what = {
        "target": name,
        "seconds": seconds,
        "executions": executions,
        "covered": int(covered[-1][0]) if covered else 0,
        "finds": len(found),
    }
    print(json.dumps(what), flush=True)
    for path in finds.glob("*.txt"):
        print(f"  {path}: {path.read_text().splitlines()[0]}", flush=True)
    return len(found)


def _child(name: str, folders: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("child.py")), name, str(WORK / "finds" / name)]
    return subprocess.run([*command, *folders, *options], text=True, stderr=subprocess.PIPE, check=False)


def _without_instrumenting(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "Instrumenting" not in line)


def _write_seeds(folder: Path, seeds: Sequence[bytes]) -> None:
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)


def _escaped(word: str) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    sys.exit(main())
