"""Run chains for a time: `python -m chains --seconds 3600 --seed 1`."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from chains.chain import ChainError, run_chain
from chains.running import Figures


def main(arguments: list[str] | None = None) -> int:
    """Run chains; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(prog="chains", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to begin new chains")
    parser.add_argument("--chains", type=int, help="how many chains at most")
    parser.add_argument("--seed", type=int, help="the seed of the first chain; the next ones count from there")
    parser.add_argument("--work", type=Path, help="where to work; what fails is kept there")
    parser.add_argument("--keep-going", action="store_true", help="go on after a chain that failed")
    options = parser.parse_args(arguments)
    seed = int(time.time()) if options.seed is None else options.seed
    work = options.work or Path(tempfile.mkdtemp(prefix="chains-"))
    work.mkdir(parents=True, exist_ok=True)
    figures, failures = Figures(), 0
    begin = time.monotonic()
    print(f"chains from seed {seed} on, in {work}", flush=True)
    for number in itertools.count():
        if time.monotonic() - begin >= options.seconds or number == options.chains:
            break
        try:
            run_chain(seed + number, work, figures)
        except KeyboardInterrupt:
            break
        except ChainError as failure:
            failures += 1
            print(f"\n{failure}\nagain: make soak-chains CHAINS=1 SEED={seed + number}\n", flush=True)
            if not options.keep_going:
                break
    print(f"{summary(figures, time.monotonic() - begin)}\n{failures} failed", flush=True)
    if not list(work.iterdir()):
        work.rmdir()
    return min(failures, 1)


def summary(figures: Figures, seconds: float) -> str:
    """What was done, in lines."""
    lines = [f"{figures.chains} chains in {seconds:.0f} s, {sum(figures.commands.values())} commands"]
    for title, counts in (
        ("commands", figures.commands),
        ("ways", figures.ways),
        ("steps", figures.steps),
        ("refused, by exit code", figures.refused),
    ):
        lines.append(f"{title}: " + ", ".join(f"{key} {count}" for key, count in sorted(counts.items())))
    lines.append(f"compared: {figures.tensors:,} tensors, {figures.elements:,} elements")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
