"""Measure combinations of adapters, as an adapter and folded, against PEFT's add_weighted_adapter on the same adapters.

Every row runs two whole processes in turn, after one uncounted run of each, with warm inputs; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from measure import HEADER, Contender, compare, row, warm
from models import ATTENTION, SIZES, write_hf_base, write_peft_adapter

HERE = Path(__file__).parent
COUNT, RANK = 3, 16


class Bench:
    """The files of a benchmark, made when they are first asked for, and the rows that use them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.size: str = arguments.size
        self.runs: int = arguments.runs
        self.peft: str = arguments.peft_python
        self.work.mkdir(parents=True, exist_ok=True)

    def base(self) -> Path:
        """A base as a Hugging Face folder, which PEFT has to load."""
        folder = self.work / f"{self.size}-hf-bf16"
        if not folder.exists():
            write_hf_base(folder, self.size)
        return folder

    def adapters(self, targets: tuple[str, ...]) -> list[str]:
        """Adapters of one rank and other numbers."""
        folders = [self.work / f"{self.size}-served-{len(targets)}-{RANK}-{number}" for number in range(COUNT)]
        for number, folder in enumerate(folders):
            if not folder.exists():
                write_peft_adapter(folder, self.size, RANK, targets, seed=number)
        return list(map(str, folders))

    def against_peft(self, method: str, targets: tuple[str, ...], *, merges: bool = False) -> str:
        """One method, as an adapter or folded into the base."""
        base, adapters = self.base(), self.adapters(targets)
        script = str(Path(sys.executable).with_name("pet-merge"))
        output, theirs = self.work / "combined", self.work / "combined-peft"
        density = [] if method in ("cat", "linear", "svd") else ["--density", "0.5"]
        options = ["--method", method, *density, "--weight", "0.5", "-o", str(output), "-q"]
        inputs = [str(base), *adapters] if merges else ["--adapters-only", *adapters]
        ours = Contender(f"{method}, {'folded' if merges else 'an adapter'}", [script, *inputs, *options], output)
        command = [self.peft, str(HERE / "peft_combine.py"), str(base), str(theirs), method, *adapters]
        other = Contender("PEFT", [*command, "merge"] if merges else command, theirs)
        paths = warm(base, *map(Path, adapters))
        return row(ours, other, compare(ours, other, self.runs, paths), "none")


def main() -> None:
    """Parse the arguments, run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where the files go (7 GB for 2GB)")
    parser.add_argument("--size", choices=SIZES, default="2GB", help="the model's size in 16-bit types")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each command")
    parser.add_argument("--rows", default="", help="only the rows whose name contains this")
    parser.add_argument("--peft-python", required=True, help="an interpreter that has PEFT and transformers")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    # PEFT decomposes every update as a whole, minutes for all of them: there, the query projections alone.
    rows: dict[str, Callable[[], str]] = {
        "folded": lambda: bench.against_peft("cat", ATTENTION, merges=True),
        "cat": lambda: bench.against_peft("cat", ATTENTION),
        "ties-of-factors": lambda: bench.against_peft("ties", ATTENTION),
        "exact-svd": lambda: bench.against_peft("svd", ("q_proj",)),
        "ties-of-delta": lambda: bench.against_peft("ties_svd", ("q_proj",)),
    }
    lines = [run() for name, run in rows.items() if arguments.rows in name]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, size {arguments.size}\n")
    print("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
