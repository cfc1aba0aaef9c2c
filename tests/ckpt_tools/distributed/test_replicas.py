"""Copies of a slice on several ranks: their beginnings are looked at always, all of them on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merge_cases import BASE, PAIRS, mindpet, random
from rank_folders import strategy_of, write_ranks
from strategy_bytes import strategy_bytes
from transform_cases import ROWS, Held, refusal, write_case, write_strategy

from ckpt_tools import merge, transform
from ckpt_tools.layout.model import Layout

LARGE = {"a.weight": random(0, 8, 512, dtype="bf16"), "b.weight": random(1, 8, 512, dtype="fp32")}
"""On two ranks each half, of 2,048 elements."""

TWICE = strategy_of({name: Layout((2, 2), ROWS) for name in LARGE})


def run(folder: Path, **options: object):  # type: ignore[no-untyped-def]
    return transform(folder / "in", src_strategy=folder / "src.ckpt", output=folder / "out.ckpt", **options)


@pytest.mark.parametrize(("names", "what"), [(1, "a.weight"), (2, "2 tensors such as a.weight")])
def test_a_pair_of_each_tensor_is_looked_at(tmp_path: Path, names: int, what: str) -> None:
    def change(rank: int, held: Held) -> None:
        for name in list(held)[: names if rank == 2 else 0]:
            held[name] = held[name] + np.array(1, held[name].dtype)

    write_case(tmp_path, tensors=LARGE, source=TWICE, change=change)
    (warning,) = run(tmp_path).warnings
    assert warning.startswith(f"the copies of {what} on rank 0 and rank 2 differ, and those of rank 0 are taken")
    assert "--check-replicas" in warning
    assert f"{next(iter(LARGE))}, at (0, 0): " in str(refusal(tmp_path, 5, dst_strategy=None, check_replicas=True))


def test_the_rest_is_compared_on_demand_alone(tmp_path: Path) -> None:
    def change(rank: int, held: Held) -> None:
        if rank == 2:
            held["a.weight"] = np.array(held["a.weight"])
            held["a.weight"][-1, -1] += np.array(1, held["a.weight"].dtype)

    write_case(tmp_path, tensors=LARGE, source=TWICE, change=change)
    assert run(tmp_path).warnings == ()
    assert "a.weight, at (3, 511)" in str(refusal(tmp_path, 5, dst_strategy=None, check_replicas=True))


def test_a_strategy_that_takes_slices_for_copies_is_a_warning(tmp_path: Path) -> None:
    """The run cut by the other device axis: what is taken for copies are two halves, whose shapes fit all the same."""
    write_case(tmp_path, tensors=LARGE, source=TWICE)
    other = strategy_of({name: Layout((2, 2), ((1,), ())) for name in LARGE})
    write_strategy(tmp_path / "src.ckpt", other)
    (warning,) = run(tmp_path).warnings
    assert "is the strategy that of this run?" in warning


def test_a_merge_warns_of_its_base_and_of_its_adapters(tmp_path: Path) -> None:
    adapter = mindpet(PAIRS)

    def change(rank: int, held: Held) -> None:
        if rank == 2:
            held |= {name: array + np.array(1, array.dtype) for name, array in held.items()}

    for name, tensors in (("base", BASE), ("lora", adapter)):
        layouts = {key: Layout((2, 2), ROWS if array.ndim == 2 else ((),)) for key, array in tensors.items()}
        write_ranks(tmp_path / name, tensors, strategy_of(layouts), lambda rank: f"x_rank_{rank}-1_1.ckpt", change)
        (tmp_path / f"{name}.strategy").write_bytes(strategy_bytes(layouts))
    strategies = {"src_strategy": tmp_path / "base.strategy", "adapter_strategy": tmp_path / "lora.strategy"}
    report = merge(tmp_path / "base", tmp_path / "lora", alpha=8, **strategies, output=tmp_path / "out.ckpt")
    of_base, of_adapter = report.warnings
    assert f"the copies of {len(BASE)} tensors such as {next(iter(BASE))} on rank 0" in of_base
    assert f"the copies of {len(adapter)} tensors such as {next(iter(adapter))} on rank 0" in of_adapter
