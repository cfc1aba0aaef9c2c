"""Measure planning alone: headers of many ranks, made without content, transformed with --dry-run.

    python benchmarks/planning.py --ranks 1024 --parameters 4000

The files are sparse: they have the size that their headers promise and no blocks on the disk. All that a plan has to do
is done: every header is read, every slice is checked against the strategy, every file of the output is laid out.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import struct
import time
from pathlib import Path

from ckpt_tools import transform

ROWS, COLUMNS = 4096, 16


def layouts(parameters: int, ranks: int, model_parallel: int) -> dict[str, dict[str, object]]:
    """Weights cut over `model_parallel` devices, on axis 0 or 1, and further over all others as optimizer shards."""
    others = ranks // model_parallel
    found: dict[str, dict[str, object]] = {}
    for number in range(parameters):
        axis = number % 2
        found[f"model.layers.{number // 10}.part_{number % 10}.weight"] = {
            "dev_matrix": [others, model_parallel],
            "tensor_map": [0, -1] if axis == 0 else [-1, 0],
            "param_split_shape": [],
            "indices_offset": [],
            "field": 0,
            "opt_weight_shard_step": model_parallel if number % 4 < 2 else 0,
            "opt_weight_shard_size": others if number % 4 < 2 else 0,
        }
    return found


def write_strategy(path: Path, items: dict[str, dict[str, object]]) -> None:
    """A strategy file of one stage."""
    operators = {"operator": {"stage": 0, "parallel_strategy": [[1]]}}
    path.write_text(
        json.dumps({"current_stage": 1, "parallel_strategy_item": operators, "parallel_layout_item": items})
    )


def write_ranks(folder: Path, items: dict[str, dict[str, object]], ranks: int, model_parallel: int) -> None:
    """A safetensors file for each rank, all of them with the same header and no content."""
    header: dict[str, object] = {"__metadata__": {"format": "ms"}}
    offset = 0
    others = ranks // model_parallel
    for name, layout in items.items():
        shape = [ROWS, COLUMNS]
        shape[0 if layout["tensor_map"] == [0, -1] else 1] //= model_parallel
        if layout["opt_weight_shard_size"]:
            shape[0] //= others
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    for rank in range(ranks):
        path = folder / f"rank_{rank}" / "checkpoint.safetensors"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)


def main() -> None:
    """Make the files, plan, print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work") / "planning")
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--targets", type=int, help="ranks of the output; by default half of the source's")
    parser.add_argument("--parameters", type=int, default=4000)
    arguments = parser.parse_args()
    work: Path = arguments.work
    targets = arguments.targets or arguments.ranks // 2
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    before, after = layouts(arguments.parameters, arguments.ranks, 8), layouts(arguments.parameters, targets, 4)
    write_strategy(work / "before.json", before)
    write_strategy(work / "after.json", after)
    write_ranks(work / "ranks", before, arguments.ranks, 8)
    started, used = time.perf_counter(), time.process_time()
    report = transform(
        work / "ranks",
        src_strategy=work / "before.json",
        dst_strategy=work / "after.json",
        output=work / "out",
        dry_run=True,
    )
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{arguments.ranks} -> {targets} ranks, {len(report.tensors)} parameters, {report.bytes_written / 1e9:.1f} GB: "
        f"{seconds:.1f} s ({used:.1f} s of the processor), {peak:.0f} MiB resident"
    )
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
