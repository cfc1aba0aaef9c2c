"""CRCs of a source: checked on the way of those files that are read whole, and of all on demand."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_cases import add_crc, random, tree
from rank_folders import strategy_of
from transform_cases import COLUMNS, ROWS, write_case

from ckpt_tools import transform
from ckpt_tools.layout.model import Layout
from surgery.errors import CorruptInputError

# More than what may be read of a file for its CRC alone.
TENSORS = {
    "a.weight": random(0, 256, 512, dtype="fp32"),
    "b.weight": random(1, 512, 256, dtype="bf16"),
    "norm.weight": random(2, 64, dtype="fp32"),
}


@pytest.fixture(params=[(2,), (2, 2)], ids=["each slice once", "each slice twice"])
def matrix(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


def source(folder: Path, matrix: tuple[int, ...]) -> list[Path]:
    layouts = {
        "a.weight": Layout(matrix, ROWS),
        "b.weight": Layout(matrix, COLUMNS),
        "norm.weight": Layout(matrix, ((),)),
    }
    target = {
        "a.weight": Layout((4,), COLUMNS),
        "b.weight": Layout((4,), ROWS),
        "norm.weight": Layout((4,), ((0,),)),
    }
    write_case(folder, tensors=TENSORS, source=strategy_of(layouts), target=strategy_of(target))
    files = sorted((folder / "in").rglob("*.ckpt"))
    for file in files:
        add_crc(file)
    return files


def run(folder: Path, target: str | None, **options: object):  # type: ignore[no-untyped-def]
    given = {"src_strategy": folder / "src.ckpt", "dst_strategy": target and folder / target, "output": folder / "out"}
    return transform(folder / "in", **given | options)


@pytest.mark.parametrize("target", [None, "dst.ckpt"])
@pytest.mark.parametrize("dtype", ["keep", "fp16"])
def test_files_that_are_read_whole_are_checked_and_replicas_are_not_read_for_it(
    tmp_path: Path, matrix: tuple[int, ...], target: str | None, dtype: str
) -> None:
    files = source(tmp_path, matrix)
    report = run(tmp_path, target, dtype=dtype)
    assert report.crc_checked == tuple(str(file) for file in files[:2])


def test_on_demand_all_are_checked_before_anything_is_written(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    files = source(tmp_path, matrix)
    assert run(tmp_path, None, check_crc=True, dry_run=True).crc_checked == tuple(map(str, files))


@pytest.mark.parametrize("target", [None, "dst.ckpt"])
def test_a_flipped_bit_ends_the_run_and_leaves_nothing(tmp_path: Path, target: str | None) -> None:
    files = source(tmp_path, (2,))
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 4
    files[1].write_bytes(data)
    before = tree(tmp_path)
    with pytest.raises(CorruptInputError, match=rf"{files[1].name}: expected .* as its end states"):
        run(tmp_path, target)
    assert tree(tmp_path) == before


def test_a_part_reads_too_little_for_a_check_and_says_so(tmp_path: Path) -> None:
    source(tmp_path, (2,))
    assert run(tmp_path, "dst.ckpt", ranks="0").crc_checked == ()


def test_parts_of_a_damaged_source_are_not_kept(tmp_path: Path) -> None:
    files = source(tmp_path, (2,))
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 4
    files[0].write_bytes(data)
    with pytest.raises(CorruptInputError):
        run(tmp_path, "dst.ckpt", ranks="0-3")
    assert not (tmp_path / ".out.pet-surgery").exists()


def test_what_was_taken_over_is_not_read_and_so_not_checked(tmp_path: Path) -> None:
    source(tmp_path, (2,))
    run(tmp_path, "dst.ckpt", ranks="0-3")
    assert run(tmp_path, "dst.ckpt").crc_checked == ()
