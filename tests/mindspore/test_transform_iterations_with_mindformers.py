"""What transforms and merges write as iterations is loaded by real MindFormers, and what it saves is transformed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_cases import random
from merge_cases import save as save_file
from mindformers.checkpoint import checkpoint as mf_checkpoint
from mindformers_iterations import (
    RANKS,
    WEIGHTS,
    Network,
    Play,
    cut,
    player,
    region_of,
    reshard_of,
    save,
    saved_arrays,
)
from mindspore import nn
from mindspore.parallel import Layout as Placed
from rank_folders import assert_same_arrays, read_arrays, read_ranks, slices_of_rank, strategy_of, write_ranks
from transform_cases import write_strategy

from ckpt_tools import merge, transform
from ckpt_tools.layout.model import Layout, Strategy

STATES = {f"{state}.{name}": array + 1 for state in ("adam_m", "adam_v") for name, array in WEIGHTS.items()}
SCALARS = {"global_step": np.array([7], np.int32), "epoch_num": np.array(2, np.int32)}

# Two devices by two; sharded optimizers cut axis 0 further than the network's layout.
CUTS = {
    "cut.both": Layout((2, 2), ((1,), (0,))),
    "cut.nested": Layout((2, 2), ((0, 1), ())),
    "cut.last": Layout((2, 2), ((), (0,))),
}
SHARDED = {"cut.both": Layout((2, 2), ((0,), ()), 2, 2), "cut.nested": Layout((2, 2), ((), (0,)), 2, 2)}
ROWS = {"cut.both": Layout((2,), ((0,), ())), "cut.last": Layout((2,), ((), (0,)))}


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    return player(monkeypatch)


def strategy_for(arrays: Mapping[str, np.ndarray], layouts: Mapping[str, Layout], devices: int) -> Strategy:
    """Each parameter's layout, that of its optimizer states too; what has none is whole on every device."""
    names = [name for name in arrays if name not in SCALARS]
    own = {name: name.removeprefix("adam_m.").removeprefix("adam_v.") for name in names}
    matrix = next(iter(layouts.values())).device_matrix
    whole = {name: Layout(matrix, ((),) * arrays[name].ndim) for name in names}
    assert int(np.prod(matrix)) == devices
    return strategy_of({name: layouts.get(own[name], whole[name]) for name in names})


@pytest.mark.parametrize(("layouts", "devices"), [(CUTS, 4), (SHARDED, 4), (ROWS, 2), (None, 1)])
def test_mindformers_loads_ranks_that_became_an_iteration_into_a_network_and_its_optimizer(
    tmp_path: Path, layouts: Mapping[str, Layout] | None, devices: int
) -> None:
    arrays = WEIGHTS | STATES | SCALARS
    before = strategy_for(arrays, ROWS, 2)
    source = write_ranks(tmp_path / "in", arrays, before)
    options: dict[str, Any] = {"src_strategy": write_strategy(tmp_path / "src", before), "format": "iteration"}
    if layouts is not None:
        options["dst_strategy"] = write_strategy(tmp_path / "dst", strategy_for(arrays, layouts, devices))
    transform(source, output=tmp_path / "out", **options)
    network = Network({name: np.zeros_like(array) for name, array in WEIGHTS.items()})
    optimizer = nn.AdamWeightDecay(network.trainable_params())
    mf_checkpoint.load_checkpoint(str(tmp_path / "out"), network, optimizer)
    loaded = {name: parameter.asnumpy() for name, parameter in network.parameters_dict().items()}
    assert_same_arrays(loaded, WEIGHTS)
    states = {name: parameter.asnumpy() for name, parameter in optimizer.parameters_dict().items() if name in STATES}
    assert_same_arrays(states, STATES)
    assert int(optimizer.parameters_dict()["global_step"].asnumpy().item()) == 7
    common = mf_checkpoint.CommonInfo.load_common(str(tmp_path / "out" / "iteration_00000007" / "common.json"))
    assert (common.epoch_num, common.step_num, common.global_step) == (2, 7, 7)


def test_mindformers_reshards_what_a_transform_cut_onto_other_ranks(tmp_path: Path, play: Play) -> None:
    save_file(tmp_path / "whole.ckpt", WEIGHTS)
    dst = write_strategy(tmp_path / "dst", strategy_for(WEIGHTS, CUTS, 4))
    transform(tmp_path / "whole.ckpt", dst_strategy=dst, output=tmp_path / "out", format="iteration")
    for matrix, names, cuts in (((2,), ("x",), ("x", "None")), ((4, 2), ("y", "x"), ("x", "y"))):
        layouts = {"cut.both": Placed(matrix, names)(*cuts)}
        ranks = int(np.prod(matrix))
        for rank in range(ranks):
            play(rank, ranks)
            loaded = reshard_of(tmp_path / "out" / "iteration_00000000", layouts, rank, ranks)
            for name, layout in layouts.items():
                expected = cut(WEIGHTS[name], region_of(layout, rank, WEIGHTS[name].shape))
                assert np.array_equal(loaded[name].asnumpy(), expected)


@pytest.mark.parametrize("remove_redundancy", [False, True])
def test_what_mindformers_saves_on_four_ranks_becomes_whole_and_two_ranks_and_an_iteration(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch, remove_redundancy: bool
) -> None:
    save(tmp_path / "in", play, monkeypatch, remove_redundancy)
    play(0, 1)
    arrays = saved_arrays(remove_redundancy)
    report = transform(tmp_path / "in", output=tmp_path / "whole.ckpt", check_replicas=True)
    assert (report.step, report.src_ranks) == ("12", RANKS)
    whole = read_arrays(tmp_path / "whole.ckpt")
    scalars = {name: whole.pop(name) for name in set(whole) - set(arrays)}
    # MindFormers drops what the strategy lacks where it removes redundancy.
    assert set(scalars) == (set() if remove_redundancy else {"learning_rate", "global_step"})
    assert_same_arrays(whole, arrays)
    after = strategy_for(arrays, ROWS, 2)
    dst = write_strategy(tmp_path / "dst", after)
    transform(tmp_path / "in", dst_strategy=dst, output=tmp_path / "ranks")
    for rank, held in enumerate(read_ranks(tmp_path / "ranks")):
        assert_same_arrays(held, slices_of_rank(arrays, after, rank) | scalars)
    transform(tmp_path / "in", dst_strategy=dst, output=tmp_path / "out", format="iteration")
    weights = {name: array for name, array in arrays.items() if name in WEIGHTS}
    network = Network({name: np.zeros_like(array) for name, array in weights.items()})
    optimizer = nn.AdamWeightDecay(network.trainable_params())
    mf_checkpoint.load_checkpoint(str(tmp_path / "out"), network, optimizer)
    assert_same_arrays({name: p.asnumpy() for name, p in network.parameters_dict().items()}, weights)
    for name, parameter in optimizer.parameters_dict().items():
        if name in arrays and name not in weights:
            assert np.array_equal(parameter.asnumpy(), arrays[name])
    for path in (tmp_path / "out" / "iteration_00000012").glob("*.safetensors"):
        assert path.name.startswith("llama-")
    common = mf_checkpoint.CommonInfo.load_common(str(tmp_path / "out" / "iteration_00000012" / "common.json"))
    assert (common.global_step, common.step_num, common.global_batch_size) == (12, 12, 8)


def test_mindformers_loads_a_merged_iteration(tmp_path: Path) -> None:
    base = {"layer.weight": random(1, 8, 4), "head.weight": random(2, 6, 8)}
    pair = {"layer.mindpet_delta_lora_a": random(3, 2, 4), "layer.mindpet_delta_lora_b": random(4, 8, 2)}
    save_file(tmp_path / "base.ckpt", base | pair)
    whole = strategy_of({name: Layout((2,), ((0,), ())) for name in base})
    dst = write_strategy(tmp_path / "dst", whole)
    merge(tmp_path / "base.ckpt", alpha=4, output=tmp_path / "whole.ckpt")
    merge(tmp_path / "base.ckpt", alpha=4, dst_strategy=dst, output=tmp_path / "out", format="iteration")
    network = Network({name: np.zeros_like(array) for name, array in base.items()})
    optimizer = nn.AdamWeightDecay(network.trainable_params())
    mf_checkpoint.load_checkpoint(str(tmp_path / "out"), network, optimizer)
    loaded = {name: parameter.asnumpy() for name, parameter in network.parameters_dict().items()}
    assert_same_arrays(loaded, read_arrays(tmp_path / "whole.ckpt"))
    assert int(optimizer.parameters_dict()["global_step"].asnumpy().item()) == 0
