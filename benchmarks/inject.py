"""Measure pet-inject: a whole base with LoRA, and the delta alone, against a durable copy of the base.

Every row runs two whole processes in turn, after one uncounted run of each, with warm inputs; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from measure import HEADER, Contender, compare, row, warm
from models import SIZES, write_base

HERE = Path(__file__).parent

_CONFIG = """\
pet_type: lora
lora_rank: 16
lora_alpha: 32
target_modules: '.*_proj|w[qkvo123]'
"""


class Bench:
    """The files of a benchmark, made when they are first asked for, and the rows that use them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.size: str = arguments.size
        self.runs: int = arguments.runs
        self.work.mkdir(parents=True, exist_ok=True)

    def against_copy(self, suffix: str, *options: str, target: str) -> str:
        """pet-inject against a durable copy of the base."""
        base = self.work / f"{self.size}-base-bf16{suffix}"
        if not base.exists():
            print(f"making {base.name}", file=sys.stderr)
            write_base(base, self.size, "bf16")
        config = self.work / "lora.yaml"
        config.write_text(_CONFIG)
        output, copied = self.work / f"injected{suffix}", self.work / f"copied{suffix}"
        script = str(Path(sys.executable).with_name("pet-inject"))
        command = [script, str(base), "--config", str(config), "-o", str(output), "--force", "-q", *options]
        ours = Contender(f"pet-inject, bf16 {suffix}, all linear, rank 16{' '.join(['', *options])}", command, output)
        copy = Contender(
            "durable copy", [sys.executable, str(HERE / "durable_copy.py"), str(base), str(copied)], copied
        )
        return row(ours, copy, compare(ours, copy, self.runs, warm(base)), target)


def main() -> None:
    """Parse the arguments, run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where the files go (9 GB for 2GB)")
    parser.add_argument("--size", choices=SIZES, default="2GB", help="the model's size in 16-bit types")
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each command")
    parser.add_argument("--rows", default="", help="only the rows whose name contains this")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    rows: dict[str, Callable[[], str]] = {
        "safetensors": lambda: bench.against_copy(".safetensors", target="<= 1.2"),
        "ckpt": lambda: bench.against_copy(".ckpt", target="<= 1.2"),
        "delta": lambda: bench.against_copy(".safetensors", "--only-delta", target="<= 0.5"),
    }
    lines = [run() for name, run in rows.items() if arguments.rows in name]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, size {bench.size}\n")
    print("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
