"""Each byte that the output needs is read once: as the plan says, and as the kernel counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_cases import random
from rank_folders import strategy_of
from transform_cases import COLUMNS, ROWS, write_case

from ckpt_tools import transform
from ckpt_tools.layout.model import Layout

TENSORS = {
    **{f"{number}.rows.weight": random(number, 512, 1024, dtype="bf16") for number in range(3)},
    **{f"{number}.columns.weight": random(number, 1024, 512, dtype="fp32") for number in range(3)},
    "norm.weight": random(9, 1024, dtype="fp32"),
}
NBYTES = sum(array.nbytes for array in TENSORS.values())

# Headers, the beginnings of copies, the counters themselves, the list of loaded libraries (which threadpoolctl reads).
SLACK = 600_000


def cut(matrix: tuple[int, ...], rows: tuple[tuple[int, ...], ...], columns: tuple[tuple[int, ...], ...]):  # type: ignore[no-untyped-def]
    layouts = {"rows": rows, "columns": columns, "norm": ((),)}
    return strategy_of({name: Layout(matrix, layouts[name.split(".")[-2]]) for name in TENSORS})


def counted() -> int:
    """Bytes that this process has read by any call, from the page cache or from the disk."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (cut((8,), ROWS, COLUMNS), cut((4,), ROWS, COLUMNS)),
        (cut((4,), ROWS, COLUMNS), cut((8,), ROWS, COLUMNS)),
        (cut((8,), ROWS, ROWS), cut((8,), COLUMNS, COLUMNS)),
        (cut((4, 2), ((1,), ()), ((), (1,))), cut((2, 2), ((0,), (1,)), ((1, 0), ()))),
        (cut((4,), ROWS, COLUMNS), None),
    ],
    ids=["8 to 4", "4 to 8", "rows to columns", "replicas to grids", "to whole"],
)
@pytest.mark.parametrize("dtype", ["keep", "fp16"])
def test_each_needed_byte_is_read_once(tmp_path: Path, suffix: str, source, target, dtype: str) -> None:  # type: ignore[no-untyped-def]
    write_case(tmp_path, suffix, tensors=TENSORS, source=source, target=target or source)
    given = {
        "src_strategy": tmp_path / "src.ckpt",
        "dst_strategy": tmp_path / "dst.ckpt" if target else None,
        "output": tmp_path / "out",
        "dtype": dtype,
    }
    transform(tmp_path / "in", **given, dry_run=True)  # what is imported late is imported now
    start = counted()
    planned = transform(tmp_path / "in", **given, dry_run=True)
    headers = counted() - start
    start = counted()
    transform(tmp_path / "in", **given)
    read = counted() - start - headers
    assert planned.bytes_read == NBYTES
    assert NBYTES <= read <= NBYTES + SLACK
