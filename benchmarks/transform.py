"""Measure pet-transform: against a durable copy of the same bytes, and against mindspore.transform_checkpoints.

Every row runs two whole processes in turn, after one uncounted run of each, with warm inputs; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import HEADER, Contender, compare, row, warm
from models import SIZES, write_base, write_strategy

from ckpt_tools import transform

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Cut:
    """How a checkpoint is cut: 0 ranks for not at all."""

    ranks: int
    axes: str = "as trained"
    stages: int = 1

    def __str__(self) -> str:
        if not self.ranks:
            return "whole"
        axis = f", axis {self.axes}" if self.axes.isdigit() else ""
        return f"{f'PP{self.stages}x' if self.stages > 1 else ''}TP{self.ranks}{axis}"


PAIRS = (
    (Cut(8), Cut(4)),
    (Cut(4), Cut(8)),
    (Cut(8), Cut(0)),
    (Cut(4, stages=2), Cut(2)),
    (Cut(8, "0"), Cut(8, "1")),
)


class Bench:
    """The files of a benchmark, made when they are first asked for, and the rows that use them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.size: str = arguments.size
        self.runs: int = arguments.runs
        self.mindspore: str | None = arguments.mindspore_python
        self.work.mkdir(parents=True, exist_ok=True)

    def strategy(self, cut: Cut) -> Path | None:
        """The strategy file or folder of a cut."""
        if not cut.ranks:
            return None
        path = self.work / f"{self.size}-{cut}.strategy.json".replace(" ", "-").replace(",", "")
        if not path.exists():
            write_strategy(path, self.size, cut.ranks, cut.axes, cut.stages)
        return path

    def source(self, cut: Cut, form: str) -> Path:
        """A checkpoint that is cut so, in rank folders."""
        path = self.work / f"{self.size}-{cut}-{form}".replace(" ", "-").replace(",", "")
        if not path.exists():
            print(f"making {path.name}", file=sys.stderr)
            whole = self.work / f"{self.size}-whole.{form}"
            write_base(whole, self.size, "bf16")
            transform(whole, dst_strategy=self.strategy(cut), output=path)
            whole.unlink()
        return path

    def ours(self, source: Path, before: Cut, after: Cut, output: Path) -> Contender:
        """A pet-transform."""
        script = str(Path(sys.executable).with_name("pet-transform"))
        command = [script, str(source), "-o", str(output), "--src-strategy", str(self.strategy(before)), "-q"]
        if after.ranks:
            command += ["--dst-strategy", str(self.strategy(after))]
        return Contender(f"pet-transform, {source.name.rpartition('-')[2]}, {before} -> {after}", command, output)

    def against_copy(self, before: Cut, after: Cut) -> str:
        """pet-transform against a durable copy of the source's files."""
        source = self.source(before, "safetensors")
        ours = self.ours(source, before, after, self.work / ("out" if after.ranks else "out.safetensors"))
        copied = self.work / "copied"
        copy = Contender(
            "durable copy", [sys.executable, str(HERE / "durable_copy.py"), str(source), str(copied)], copied
        )
        return row(ours, copy, compare(ours, copy, self.runs, warm(source)), "<= 1.2")

    def against_no_digest(self, before: Cut, after: Cut) -> str:
        """pet-transform against itself without the digests of the manifest."""
        source = self.source(before, "safetensors")
        ours = self.ours(source, before, after, self.work / "out")
        plain = Contender("the same with --no-digest", [*ours.command, "--no-digest"], ours.output)
        return row(ours, plain, compare(ours, plain, self.runs, warm(source)), "<= 1.25")

    def against_mindspore(self, form: str) -> str:
        """pet-transform against MindSpore's own function, TP8 to TP4."""
        assert self.mindspore is not None
        before, after = PAIRS[0]
        source, target = self.source(before, form), self.work / "mindspore-out"
        ours = self.ours(source, before, after, self.work / "out")
        places = [str(source), str(self.strategy(before)), str(target), str(self.strategy(after)), form]
        command = [self.mindspore, str(HERE / "mindspore_transform.py"), *places]
        theirs = Contender("mindspore.transform_checkpoints", command, target)
        results = compare(ours, theirs, min(self.runs, 3), warm(source))
        return row(ours, theirs, results, "<= 0.125, and <= 0.10 of the memory")


def main() -> None:
    """Parse the arguments, run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where the files go (10 GB for 2GB)")
    parser.add_argument("--size", choices=SIZES, default="2GB", help="the model's size in 16-bit types")
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each command")
    parser.add_argument("--rows", default="", help="only the rows whose name contains this")
    parser.add_argument("--mindspore-python", help="an interpreter that has mindspore 2.9")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    rows: dict[str, Callable[[], str]] = {
        f"{before} -> {after}": lambda pair=(before, after): bench.against_copy(*pair)  # type: ignore[misc]
        for before, after in PAIRS
    }
    for pair in (PAIRS[0], PAIRS[-1]):
        rows[f"digests, {pair[0]} -> {pair[1]}"] = lambda pair=pair: bench.against_no_digest(*pair)  # type: ignore[misc]
    if bench.mindspore:
        for form in ("ckpt", "safetensors"):
            rows[f"mindspore {form}"] = lambda form=form: bench.against_mindspore(form)  # type: ignore[misc]
    lines = [run() for name, run in rows.items() if arguments.rows in name]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, size {bench.size}\n")
    print("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
