"""The example's files are what MindSpore would write of the run: slices by the definition, strategies byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_cases import slice_by_definition
from rank_folders import assert_same_arrays, read_arrays
from strategy_bytes import strategy_bytes

from ckpt_tools import transform
from ckpt_tools.formats.ranks import read_rank_folder
from ckpt_tools.layout import read_strategy
from examples.train_on_eight import main, model
from surgery.errors import MismatchError


@pytest.mark.parametrize("stages", ["1", "2"])
@pytest.mark.parametrize("method", [[], ["--lora"]])
def test_ranks_hold_the_slices_that_the_strategy_says(tmp_path: Path, stages: str, method: list[str]) -> None:
    main([str(tmp_path), "--stages", stages, *method])
    strategy = read_strategy(tmp_path / "strategy")
    assert (strategy.ranks, len(strategy.stages)) == (8, int(stages))
    network = model(lora=bool(method))
    for rank, file in enumerate(read_rank_folder(tmp_path / "checkpoint").ranks):
        layouts = strategy.stages[strategy.stage_of(rank)]
        expected = {
            name: slice_by_definition(array, layouts[name], rank % strategy.stage_devices)
            for name, array in network.items()
            if name in layouts
        }
        held = {name: file.tensors[name].read_all() for name in file.tensors if name in network}
        assert_same_arrays(held, expected)
        assert file.tensors["global_step"].read_all() == [100]


def test_a_strategy_has_the_bytes_that_the_compiler_writes(tmp_path: Path) -> None:
    main([str(tmp_path), "--stages", "2"])
    for rank, stage in ((0, 0), (7, 1)):
        data = (tmp_path / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").read_bytes()
        layouts = read_strategy(tmp_path / "strategy").stages[stage]
        items = data[data.index(b"\x1a") :]
        assert strategy_bytes(layouts, stage).endswith(items)


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_without_redundancy_each_slice_is_saved_once(tmp_path: Path, format: str) -> None:
    main([str(tmp_path), "--remove-redundancy", "--format", format])
    report = transform(tmp_path / "checkpoint", src_strategy=tmp_path / "strategy", output=tmp_path / "out.ckpt")
    whole = read_arrays(tmp_path / "out.ckpt")
    assert {name: whole[name].tobytes() for name in model()} == {n: a.tobytes() for n, a in model().items()}
    assert bool(report.warnings) == (format == "ckpt"), "a .ckpt cannot say it"


def test_the_strategy_of_trainable_parameters_leaves_the_base_out(tmp_path: Path) -> None:
    main([str(tmp_path), "--lora", "--trainable-only"])
    with pytest.raises(MismatchError, match="only_trainable_params: False"):
        transform(tmp_path / "checkpoint", src_strategy=tmp_path / "strategy", output=tmp_path / "out.ckpt")
