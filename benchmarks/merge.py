"""Measure pet-merge: against a durable copy, MindFormers' tool and PEFT. `make bench` runs all of it.

Every row runs two whole processes in turn, after one uncounted run of each, with warm inputs; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from measure import HEADER, Contender, compare, row, warm
from models import (
    ALL_LINEAR,
    ATTENTION,
    SIZES,
    write_adapter,
    write_base,
    write_combined,
    write_hf_base,
    write_peft_adapter,
)

HERE = Path(__file__).parent


class Bench:
    """The files of a benchmark, made when they are first asked for, and the rows that use them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.size: str = arguments.size
        self.runs: int = arguments.runs
        self.mindformers: str | None = arguments.mindformers_python
        self.peft: str | None = arguments.peft_python
        self.work.mkdir(parents=True, exist_ok=True)

    def file(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file or folder of the work folder."""
        path = self.work / f"{self.size}-{name}"
        if not path.exists():
            print(f"making {path.name}", file=sys.stderr)
            make(path)
        return path

    def base(self, dtype: str, suffix: str) -> Path:
        """A base file."""
        return self.file(f"base-{dtype}{suffix}", lambda path: write_base(path, self.size, dtype))

    def adapter(self, rank: int, targets: tuple[str, ...]) -> Path:
        """An adapter in MindPet's names."""
        name = f"lora-{len(targets)}-{rank}.ckpt"
        return self.file(name, lambda path: write_adapter(path, self.size, rank, targets))

    def against_copy(
        self, label: str, dtype: str, suffix: str, rank: int, targets: tuple[str, ...], target: str
    ) -> str:
        """pet-merge against a durable copy of the base."""
        base, adapter = self.base(dtype, suffix), self.adapter(rank, targets)
        ours = self.ours(label, base, adapter, self.work / f"merged{suffix}", rank)
        copied = self.work / f"copied{suffix}"
        copy = Contender(
            "durable copy", [sys.executable, str(HERE / "durable_copy.py"), str(base), str(copied)], copied
        )
        return row(ours, copy, compare(ours, copy, self.runs, warm(base, adapter)), target)

    def ours(self, label: str, base: Path, adapter: Path | None, output: Path, rank: int) -> Contender:
        """A pet-merge."""
        script = str(Path(sys.executable).with_name("pet-merge"))
        adapters = [str(adapter)] if adapter is not None else []
        command = [script, str(base), *adapters, "-o", str(output), "--alpha", str(2 * rank), "-q"]
        return Contender(label, command, output)

    def against_no_digest(self) -> str:
        """pet-merge against itself without the digests of the manifest."""
        base, adapter = self.base("bf16", ".safetensors"), self.adapter(8, ATTENTION)
        ours = self.ours("pet-merge, bf16 .safetensors", base, adapter, self.work / "merged.safetensors", 8)
        plain = Contender("the same with --no-digest", [*ours.command, "--no-digest"], ours.output)
        return row(ours, plain, compare(ours, plain, self.runs, warm(base, adapter)), "<= 1.25")

    def against_mindformers(self) -> str:
        """pet-merge against MindFormers' tool, on the one file with base and adapter that it takes."""
        assert self.mindformers is not None
        combined = self.file("combined-fp16.ckpt", lambda path: write_combined(path, self.size, "fp16", 8, ATTENTION))
        ours = self.ours("pet-merge, fp16 .ckpt with its LoRA", combined, None, self.work / "merged.ckpt", 8)
        folder = self.work / "mindformers"
        words = ["-m", "mindformers.tools.transform_ckpt_lora", "--src_ckpt_path_or_dir", str(combined)]
        words += ["--dst_ckpt_dir", str(folder), "--lora_scaling", "2"]
        # The tool fails at the end of its work where the folder is missing.
        command = ["sh", "-c", 'mkdir -p "$0" && exec "$@"', str(folder), self.mindformers, *words]
        theirs = Contender("MindFormers 1.9 transform_ckpt_lora.py", command, folder)
        results = compare(ours, theirs, min(self.runs, 3), warm(combined))
        return row(ours, theirs, results, "<= 0.10, and <= 0.10 of the memory")

    def against_peft(self) -> str:
        """pet-merge against PEFT as a process of its own."""
        assert self.peft is not None
        base = self.file("hf-bf16", lambda path: write_hf_base(path, self.size))
        adapter = self.file("peft-4-8", lambda path: write_peft_adapter(path, self.size, 8, ATTENTION))
        ours = self.ours("pet-merge, Hugging Face and PEFT folders", base, adapter, self.work / "merged-hf", 8)
        output = self.work / "peft-out"
        words = [str(HERE / "peft_merge.py"), str(base), str(adapter), str(output)]
        theirs = Contender("PEFT merge_and_unload", [self.peft, *words], output)
        return row(ours, theirs, compare(ours, theirs, min(self.runs, 5), warm(base, adapter)), "<= 0.50")


def main() -> None:
    """Parse the arguments, run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where the files go (8 GB for 1.5GB)")
    parser.add_argument("--size", choices=SIZES, default="1.5GB", help="the model's size in 16-bit types")
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each command")
    parser.add_argument("--rows", default="", help="only the rows whose name contains this")
    parser.add_argument("--mindformers-python", help="an interpreter that has mindformers 1.9")
    parser.add_argument("--peft-python", help="an interpreter that has peft and transformers")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    rows: dict[str, Callable[[], str]] = {
        name: lambda values=values: bench.against_copy(*values)  # type: ignore[misc]  # binds the loop's variable
        for name, values in {
            "bf16 safetensors": (
                "pet-merge, bf16 .safetensors, rank 8",
                "bf16",
                ".safetensors",
                8,
                ATTENTION,
                "<= 1.0",
            ),
            "fp16 safetensors": (
                "pet-merge, fp16 .safetensors, rank 8",
                "fp16",
                ".safetensors",
                8,
                ATTENTION,
                "<= 1.3",
            ),
            "bf16 ckpt": ("pet-merge, bf16 .ckpt, rank 8", "bf16", ".ckpt", 8, ATTENTION, "<= 1.3"),
            "fp16 ckpt": ("pet-merge, fp16 .ckpt, rank 8", "fp16", ".ckpt", 8, ATTENTION, "<= 1.3"),
            "all linear": ("pet-merge, bf16, all linear, rank 64", "bf16", ".safetensors", 64, ALL_LINEAR, "<= 2"),
        }.items()
    }
    rows["digests"] = bench.against_no_digest
    if bench.mindformers:
        rows["mindformers"] = bench.against_mindformers
    if bench.peft:
        rows["peft"] = bench.against_peft
    lines = [run() for name, run in rows.items() if arguments.rows in name]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, size {bench.size}\n")
    print("\n".join([HEADER, *lines]))


if __name__ == "__main__":
    main()
