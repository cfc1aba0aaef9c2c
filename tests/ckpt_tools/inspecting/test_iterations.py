"""Checkpoint 2.0, inspected and compared."""

from __future__ import annotations

from pathlib import Path

from iteration_folders import write_iteration
from merge_cases import random, save
from strategy_bytes import strategy_bytes

from ckpt_tools import inspect_checkpoint
from ckpt_tools.layout.model import Layout

TENSORS = {"a.weight": (random(0, 8, 4), (2, 1)), "b.weight": (random(1, 4, 8), (1, 2))}


def test_an_iteration_shows_whole_tensors_how_they_are_cut_and_counters(tmp_path: Path) -> None:
    write_iteration(tmp_path / "save" / "iteration_00000005", TENSORS, 2)
    report = inspect_checkpoint(tmp_path / "save")
    assert (report.kind, report.step, report.ranks) == ("iteration", "5", 2)
    assert {tensor.name: tensor.parts for tensor in report.tensors} == {"a.weight": (2, 1), "b.weight": (1, 2)}
    assert report.metadata is not None
    assert report.metadata["common.global_step"] == "5"


def test_an_iteration_with_its_strategy_beside_it_is_an_iteration(tmp_path: Path) -> None:
    write_iteration(tmp_path / "save" / "iteration_00000005", TENSORS, 2)
    strategy = {name: Layout((2,), ((), ())) for name in TENSORS}
    (tmp_path / "save" / "strategy.ckpt").write_bytes(strategy_bytes(strategy))
    (tmp_path / "save" / "latest_checkpointed_iteration.txt").write_text("5")
    assert inspect_checkpoint(tmp_path / "save").kind == "iteration"


def test_an_iteration_is_compared_with_a_whole_checkpoint(tmp_path: Path) -> None:
    write_iteration(tmp_path / "iteration_00000005", TENSORS, 2)
    save(tmp_path / "whole.ckpt", {name: array for name, (array, _) in TENSORS.items()})
    comparison = inspect_checkpoint(tmp_path / "iteration_00000005", tmp_path / "whole.ckpt").comparison
    assert comparison is not None
    assert comparison.equal


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    import tracemalloc

    array = random(0, 4096, 2048)  # 32 MB, and in float64 twice as much
    save(tmp_path / "a.safetensors", {"w": array})
    save(tmp_path / "b.ckpt", {"w": array * 2})
    del array
    inspect_checkpoint(tmp_path / "a.safetensors")
    tracemalloc.start()
    try:
        report = inspect_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.ckpt", threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.comparison is not None
    assert not report.comparison.equal
    assert peak < 24_000_000
