"""Measure what an un-merge patch costs: its size, the time to make it, and the time to restore the base.

`make bench-unmerge` runs it. Whole processes, warm inputs, medians; see docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from measure import Contender, measure, warm
from models import ALL_LINEAR, ATTENTION, SIZES, Noise, write_base

from ckpt_tools.saving import save_checkpoint
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import LazyTensor


def write_small_adapter(path: Path, size: str, rank: int, targets: tuple[str, ...]) -> None:
    """A LoRA whose delta is about a hundredth of the weights with the scaling 2: A of 0.02, B of 0.005 / sqrt(rank)."""
    tensors: dict[str, LazyTensor] = {}
    for seed, (name, shape) in enumerate(SIZES[size].weights()):
        if name.split(".")[-2] in targets and len(shape) == 2:
            layer = name.removesuffix(".weight")
            tensors[f"{layer}.mindpet_delta_lora_a"] = Noise((rank, shape[1]), BY_NAME["fp32"], 10_000 + seed)
            tensors[f"{layer}.mindpet_delta_lora_b"] = Noise((shape[0], rank), BY_NAME["fp32"], 20_000 + seed)
    save_checkpoint(path, tensors)


def main() -> None:
    """Parse the arguments, run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where the files go (4 times the size)")
    parser.add_argument("--size", choices=SIZES, default="2GB", help="the model's size in 16-bit types")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    base, merged, back = (work / f"{name}.safetensors" for name in ("base", "merged", "back"))
    patch = work / "patch"
    if not base.exists():
        write_base(base, arguments.size, "bf16")
    print("| delta | patch | merge, s | with patch, s | unmerge, s | memory of each, MB |")
    print("|---|---|---|---|---|---|")
    for label, rank, targets in (("attention, rank 8", 8, ATTENTION), ("all linear, rank 64", 64, ALL_LINEAR)):
        adapter = work / f"lora-{rank}.safetensors"
        write_small_adapter(adapter, arguments.size, rank, targets)
        # B @ A of 0.02 each is 4e-4 * sqrt(rank): the scaling makes it a hundredth of the weights' 0.02.
        scaling = str(0.5 / rank**0.5)
        words = [sys.executable, "-m", "ckpt_tools.cli.merge"]
        plain = [*words, str(base), str(adapter), "--scaling", scaling, "-o", str(merged), "-q"]
        patched = [*plain, "--unmerge-patch", str(patch)]
        undo = [*words, "--unmerge", str(patch), str(merged), str(adapter), "-o", str(back), "-q"]
        seconds, memory = [], []
        for command, outputs in ((plain, (merged,)), (patched, (merged, patch)), (undo, (back,))):
            runs = []
            for _ in range(1 + arguments.runs):
                for output in outputs:
                    output.unlink(missing_ok=True)
                warm(base, adapter)()
                runs.append(measure(Contender(label, command, outputs[-1])))
            seconds.append(statistics.median(run.seconds for run in runs[1:]))
            memory.append(max(run.anonymous_bytes for run in runs[1:]) / 1e6)
        share = patch.stat().st_size / base.stat().st_size
        print(f"| {label} | {100 * share:.2f} % | " + " | ".join(f"{second:.2f}" for second in seconds)
              + " | " + ", ".join(f"{size:.0f}" for size in memory) + " |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
