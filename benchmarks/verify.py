"""Measure pet-verify: the whole proof, and a sample, against the merge that it proves.

Every row runs two whole processes in turn, after one uncounted run of each, with warm inputs; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from measure import HEADER, Contender, compare, row, warm
from models import ATTENTION, SIZES, write_adapter, write_base


class Bench:
    """The files of a benchmark, made when they are first asked for, and the rows that use them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.runs: int = arguments.runs
        self.work.mkdir(parents=True, exist_ok=True)
        self.base = self.work / f"{arguments.size}-base-bf16.safetensors"
        self.adapter = self.work / f"{arguments.size}-lora-4-8.ckpt"
        self.merged = self.work / f"{arguments.size}-merged.safetensors"
        if not self.base.exists():
            write_base(self.base, arguments.size, "bf16")
        if not self.adapter.exists():
            write_adapter(self.adapter, arguments.size, 8, ATTENTION)
        if not self.merged.exists():
            subprocess.run(self.merge(self.merged), check=True)

    def merge(self, output: Path) -> list[str]:
        """The command that is proved."""
        script = str(Path(sys.executable).with_name("pet-merge"))
        return [script, str(self.base), str(self.adapter), "--alpha", "16", "-o", str(output), "-q"]

    def against_merge(self, *options: str) -> str:
        """pet-verify against the merge."""
        script = str(Path(sys.executable).with_name("pet-verify"))
        inputs = [str(self.base), str(self.adapter), str(self.merged)]
        nothing = self.work / "nothing"  # a proof writes no output
        ours = Contender(f"pet-verify {' '.join(options)}", [script, *inputs, "--alpha", "16", "-q", *options], nothing)
        output = self.work / "again.safetensors"
        theirs = Contender("pet-merge", self.merge(output), output)
        return row(ours, theirs, compare(ours, theirs, self.runs, warm(self.base, self.adapter, self.merged)), "none")


def main() -> None:
    """Parse the arguments, run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where the files go (6 GB for 2GB)")
    parser.add_argument("--size", choices=SIZES, default="2GB", help="the model's size in 16-bit types")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command")
    parser.add_argument("--rows", default="", help="only the rows whose name contains this")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    rows: dict[str, Callable[[], str]] = {
        "all": bench.against_merge,
        "sample": lambda: bench.against_merge("--sample", "0.01"),
    }
    lines = [run() for name, run in rows.items() if arguments.rows in name]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, size {arguments.size}\n")
    print("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
