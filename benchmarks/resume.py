"""Measure a merge that goes on where a killed one was: `make bench-resume`.

The output is a folder of ten shards; the run is killed (SIGKILL) when nine of them are complete, and the same command
is run again. In turn with whole runs: whole processes, warm inputs, medians; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measure import Contender, measure, warm
from models import ATTENTION, SIZES, write_adapter, write_base

SHARDS = 10


def kill_at_nine_tenths(command: Sequence[str], output: Path) -> None:
    """Run a command until all shards but one are complete, and kill it."""
    content = output.parent / f".{output.name}.pet-surgery" / "content"
    while True:
        subprocess.run(["rm", "-rf", str(output)], check=True)
        process = subprocess.Popen(command)
        while process.poll() is None and len(list(content.glob("*.safetensors"))) < SHARDS - 1:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = len(list(content.glob("*.safetensors")))
        if found == SHARDS - 1:
            return
        print(f"  killed with {found} of {SHARDS} shards: once more", file=sys.stderr)


def main() -> None:
    """Parse the arguments, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where the files go (twice the size)")
    parser.add_argument("--size", choices=SIZES, default="13.5GB", help="the model's size in 16-bit types")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    base, adapter = work / f"{arguments.size}-base-bf16.safetensors", work / f"{arguments.size}-lora-4-8.ckpt"
    if not base.exists():
        write_base(base, arguments.size, "bf16")
    if not adapter.exists():
        write_adapter(adapter, arguments.size, 8, ATTENTION)
    # The embeddings are the largest tensors: shards of a tenth fill a little unevenly.
    output, shard_bytes = work / "resumed", int(base.stat().st_size / (SHARDS - 0.5))
    print("| | whole | resumed at nine tenths | ratio, median of pairs (range) |\n|---|---|---|---|")
    for label, options in (("with digests", ()), ("--no-digest", ("--no-digest",))):
        command = [sys.executable, "-m", "ckpt_tools.cli.merge", str(base), str(adapter), "-o", str(output), "-q"]
        command += ["--alpha", "16", "--max-shard-size", str(shard_bytes), *options]
        whole, resumed = [], []
        for turn in range(arguments.runs + 1):
            warm(base, adapter)()
            whole.append(measure(Contender(label, command, output)).seconds)
            kill_at_nine_tenths(command, output)
            warm(base, adapter)()
            resumed.append(measure(Contender(label, command, output)).seconds)
            print(f"  {label}: whole {whole[-1]:.2f} s, resumed {resumed[-1]:.2f} s", file=sys.stderr)
            if turn == 0:
                whole.clear(), resumed.clear()
        ratios = sorted(b / a for a, b in zip(whole, resumed, strict=True))
        print(
            f"| {label} | {statistics.median(whole):.2f} s | {statistics.median(resumed):.2f} s "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            flush=True,
        )
        subprocess.run(["rm", "-rf", str(output)], check=True)


if __name__ == "__main__":
    main()
