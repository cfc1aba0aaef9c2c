"""Measure pet-split on a checkpoint of 13.5 GB that holds base and adapter; see docs/performance.md.

    python benchmarks/split.py

The base's content is a hole in the file, which is as good as any other, since it is not read.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from measure import Contender, measure
from models import ATTENTION, SIZES, combined_tensors

from ckpt_tools.writing.plan import OutputFile


def write_sparse(path: Path, size: str, rank: int) -> None:
    """Base and adapter in one file, with nothing where their content would be."""
    tensors = tuple(combined_tensors(size, "bf16", rank, ATTENTION).items())
    layout = OutputFile(path.name, path.suffix[1:], tensors, {"format": "ms"}).layout()
    with path.open("wb") as file:
        file.truncate(layout.size)
        for offset, data in layout.literals:
            file.seek(offset)
            file.write(data)


def main() -> None:
    """Make the files, run the command, print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    parser.add_argument("--size", choices=SIZES, default="13.5GB")
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    script = str(Path(sys.executable).with_name("pet-split"))
    for form in ("ckpt", "safetensors"):
        source, output = arguments.work / f"combined-{arguments.size}.{form}", arguments.work / "adapter"
        write_sparse(source, arguments.size, 8)
        command = [script, str(source), "--alpha", "16", "-o", str(output), "-q"]
        contender = Contender(f"pet-split, {form}, {arguments.size}", command, output)
        runs = [measure(contender) for _ in range(arguments.runs + 1)][1:]
        seconds = sorted(run.seconds for run in runs)
        memory = statistics.median(run.anonymous_bytes for run in runs) / 1e6
        times = f"{statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})"
        print(f"{contender.name}: {times}, {memory:.0f} MB")
        source.unlink()


if __name__ == "__main__":
    main()
