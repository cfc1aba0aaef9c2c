"""Fresh parameters are drawn on the machines of a cluster with the bits that they have here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inject_cases import LORA, WEIGHTS
from merge_cases import contents, write_folder
from transform_cases import write_strategy

from ckpt_tools import inject
from ckpt_tools.layout import Layout, Strategy

if TYPE_CHECKING:
    import pytest
    from ray.cluster_utils import Cluster


def test_a_cluster_writes_the_bytes_that_this_machine_does(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    write_folder(tmp_path / "base", WEIGHTS, shards=2)
    layouts = {name: Layout((4,), ((),) * (one.ndim - 1) + ((0,),)) for name, one in WEIGHTS.items()}
    write_strategy(tmp_path / "dst.ckpt", Strategy(tmp_path, (layouts,), 4))
    for cut in ({}, {"dst_strategy": tmp_path / "dst.ckpt"}):
        for executor in ("local", "ray"):
            inject(
                tmp_path / "base",
                config={**LORA, "lora_b_init": "normal"},
                output=tmp_path / f"{executor}{len(cut)}",
                executor=executor,
                threads=1,
                **cut,
            )
        assert contents(tmp_path / f"ray{len(cut)}") == contents(tmp_path / f"local{len(cut)}")
