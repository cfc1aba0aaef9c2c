"""Random layouts into random layouts, against the definition of what each rank holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from merge_cases import random
from rank_folders import assert_same_arrays, read_arrays, read_ranks, slices_of_rank, strategy_of, write_ranks
from soak import examples
from transform_cases import twice_cut, write_strategy

from ckpt_tools import transform
from ckpt_tools.layout.model import Layout, Strategy


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@settings(max_examples=examples(40), deadline=None)
@given(case=twice_cut())
def test_any_layout_becomes_any_other(suffix: str, case: tuple[dict[str, np.ndarray], Strategy, Strategy]) -> None:
    tensors, before, after = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_ranks(folder / "in", tensors, before, lambda rank: f"x_rank_{rank}-3_2{suffix}")
        src, dst = write_strategy(folder / "src", before), write_strategy(folder / "dst", after)
        report = transform(source, src_strategy=src, dst_strategy=dst, output=folder / "out", check_replicas=True)
        assert report.dst_ranks == after.ranks
        for rank, held in enumerate(read_ranks(folder / "out")):
            assert_same_arrays(held, slices_of_rank(tensors, after, rank))
        transform(source, src_strategy=src, output=folder / f"whole{suffix}")
        assert_same_arrays(read_arrays(folder / f"whole{suffix}"), tensors)
        transform(folder / f"whole{suffix}", dst_strategy=dst, output=folder / "again", threads=1)
        for rank in range(after.ranks):
            file = Path(f"rank_{rank}") / f"checkpoint_{rank}{suffix}"
            if suffix == ".ckpt":
                assert (folder / "out" / file).read_bytes() == (folder / "again" / file).read_bytes()


def test_a_pipeline_becomes_one_stage_and_back(tmp_path: Path) -> None:
    row, column, whole = ((0,), ()), ((), (0,)), ((), ())
    tensors = {f"layers.{number}.weight": random(number, 8, 4, dtype="bf16") for number in range(4)}
    tensors["embedding"] = random(9, 16, 4, dtype="bf16")
    tensors["global_step"] = np.array(7, np.int32)
    stages = [
        {f"layers.{n}.weight": Layout((4,), row if n % 2 else column) for n in group} for group in ((0, 1), (2, 3))
    ]
    for stage in stages:
        stage["embedding"] = Layout((4,), row)  # tied: in both
    pipeline = strategy_of(*stages)
    flat = strategy_of({name: Layout((2,), whole if "0" in name else row) for name in tensors if name != "global_step"})
    source = write_ranks(tmp_path / "in", tensors, pipeline)
    assert "layers.3.weight" not in read_ranks(source)[0]
    paths = {
        "src_strategy": write_strategy(tmp_path / "pp", pipeline),
        "dst_strategy": write_strategy(tmp_path / "flat", flat),
    }
    report = transform(source, **paths, output=tmp_path / "out", check_replicas=True)
    assert (report.src_ranks, report.dst_ranks, report.step) == (8, 2, "3_2")
    for rank, held in enumerate(read_ranks(tmp_path / "out")):
        assert_same_arrays(held, slices_of_rank(tensors, flat, rank))
    transform(
        tmp_path / "out",
        src_strategy=paths["dst_strategy"],
        dst_strategy=paths["src_strategy"],
        output=tmp_path / "back",
    )
    for rank, held in enumerate(read_ranks(tmp_path / "back")):
        assert_same_arrays(held, slices_of_rank(tensors, pipeline, rank))
