"""Merging slices of ranks, into slices of other ranks: the bits of merging the whole and cutting it then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merge_cases import BASE, PAIRS, Arrays, mindpet, random, save, tree
from rank_folders import assert_same_arrays, read_arrays, read_ranks, slices_of_rank, strategy_of, write_ranks
from strategy_bytes import strategy_bytes

from ckpt_tools import merge
from ckpt_tools.layout.model import Layout, Strategy
from surgery.errors import MismatchError, UsageError

ROWS, COLUMNS, WHOLE = ((0,), ()), ((), (0,)), ((), ())
ADAPTER = mindpet(PAIRS)
STATES = {f"adam_m.{name}": np.zeros_like(array) for name, array in ADAPTER.items()}
SCALARS = {"global_step": np.array(7, np.int32), "epoch_num": np.array([1], np.int32)}


def tensor_map(name: str) -> tuple[tuple[int, ...], ...]:
    """How MindFormers cuts a LLaMA: wq and the like by rows and wo, w2 by columns; A and B to match."""
    if name.endswith(".mindpet_delta_lora_a"):
        return WHOLE
    if name.endswith(("norm.weight", "norm_out.weight")):
        return ((),)
    return COLUMNS if ".wo." in name or ".w2." in name else ROWS


def cut(arrays: Arrays, matrix: tuple[int, ...], shards: bool = False) -> Strategy:
    """A strategy of all but scalars; with `shards`, replicas over the first device axis share axis 0."""
    step = {"shard_step": matrix[-1], "shard_size": matrix[0]} if shards else {}
    layouts = {
        name: Layout(matrix, tensor_map(name), **(step if array.ndim == 2 and tensor_map(name) == ROWS else {}))
        for name, array in arrays.items()
        if array.ndim > 0 and name not in SCALARS
    }
    return strategy_of(layouts)


def written(path: Path, strategy: Strategy) -> Path:
    path.write_bytes(strategy_bytes(strategy.stages[0]))
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What a merge of whole files makes."""
    folder = tmp_path_factory.mktemp("whole")
    save(folder / "base.ckpt", BASE)
    save(folder / "lora.ckpt", ADAPTER)
    merge(folder / "base.ckpt", folder / "lora.ckpt", alpha=8, output=folder / "out.ckpt")
    return read_arrays(folder / "out.ckpt")


@pytest.mark.parametrize("adapter", ["whole", "sharded", "in the same files"])
@pytest.mark.parametrize("target", ["whole", "2", "3x2", "4, shards"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_merge_of_slices_has_the_bits_of_a_merge_of_the_whole(
    tmp_path: Path, expected: Arrays, adapter: str, target: str, suffix: str
) -> None:
    def name(rank: int) -> str:
        return f"llama_rank_{rank}-3_2{suffix}"

    arrays = BASE | ADAPTER | STATES | SCALARS if adapter == "in the same files" else BASE
    source = cut(arrays, (2, 4), shards=True)
    base = write_ranks(tmp_path / "base", arrays, source, name)
    options = {"src_strategy": written(tmp_path / "src", source)}
    adapters = []
    if adapter == "whole":
        save(tmp_path / "lora.ckpt", ADAPTER)
        adapters = [tmp_path / "lora.ckpt"]
    elif adapter == "sharded":
        options["adapter_strategy"] = written(tmp_path / "lora.strategy", strategy := cut(ADAPTER, (1, 2)))
        adapters = [write_ranks(tmp_path / "lora", ADAPTER, strategy, name)]
    goal = {"2": cut(expected, (2,)), "3x2": cut(expected, (3, 2)), "4, shards": cut(expected, (2, 2), shards=True)}
    if target != "whole":
        options["dst_strategy"] = written(tmp_path / "dst", goal[target])
    before = tree(base)
    output = tmp_path / ("out" if target != "whole" else f"out{suffix}")
    report = merge(base, *adapters, alpha=8, output=output, **options)
    assert tree(base) == before
    assert len(report.weights) == 4
    for weight in report.weights:
        norm = np.linalg.norm(BASE[weight.name].astype(np.float64))
        assert weight.weight_norm == pytest.approx(norm, rel=1e-6), "each element is measured once"
    if target == "whole":
        assert_same_arrays(read_arrays(output), expected)
    else:
        for rank, held in enumerate(read_ranks(output)):
            assert_same_arrays(held, slices_of_rank(expected, goal[target], rank))
    if adapter == "in the same files":
        assert {dropped.name for dropped in report.dropped} >= set(SCALARS)


def test_a_strategy_of_the_training_may_list_the_adapter_that_was_folded_in(tmp_path: Path, expected: Arrays) -> None:
    save(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", ADAPTER)
    training = cut(BASE | ADAPTER | STATES, (2,))
    strategy = written(tmp_path / "dst", training)
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, dst_strategy=strategy, output=tmp_path / "out")
    for rank, held in enumerate(read_ranks(tmp_path / "out")):
        assert_same_arrays(held, slices_of_rank(expected, training, rank))


def test_optimizer_states_that_no_strategy_lists_are_left_out(tmp_path: Path, expected: Arrays) -> None:
    arrays = BASE | ADAPTER
    source = cut(arrays, (4,))
    base = write_ranks(tmp_path / "base", arrays | {"adam_v.lm_head.weight": random(1, 3, 3)}, source)
    merge(base, alpha=8, src_strategy=written(tmp_path / "src", source), output=tmp_path / "out.ckpt")
    assert_same_arrays(read_arrays(tmp_path / "out.ckpt"), expected)


def test_frozen_weights_that_the_strategy_leaves_out_are_refused(tmp_path: Path) -> None:
    arrays = BASE | ADAPTER
    base = write_ranks(tmp_path / "base", arrays, cut(arrays, (4,)))
    trainable = written(tmp_path / "src", cut(ADAPTER, (4,)))
    with pytest.raises(MismatchError, match="only_trainable_params: False"):
        merge(base, alpha=8, src_strategy=trainable, output=tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def test_what_every_rank_holds_whole_may_be_missing_in_the_strategy(tmp_path: Path, expected: Arrays) -> None:
    listed = {name: array for name, array in BASE.items() if "norm" not in name}
    source = cut(listed, (2,))
    base = write_ranks(tmp_path / "base", BASE, source)
    save(tmp_path / "lora.ckpt", ADAPTER)
    strategy = written(tmp_path / "src", source)
    options = {"alpha": 8, "src_strategy": strategy, "output": tmp_path / "out.ckpt"}
    with pytest.raises(MismatchError, match="--replicated"):
        merge(base, tmp_path / "lora.ckpt", **options)
    merge(base, tmp_path / "lora.ckpt", replicated=["*norm*"], **options)
    assert_same_arrays(read_arrays(tmp_path / "out.ckpt"), expected)


def test_rank_folders_need_the_strategy_that_is_theirs(tmp_path: Path) -> None:
    base = write_ranks(tmp_path / "base", BASE, cut(BASE, (4,)))
    lora = write_ranks(tmp_path / "lora", ADAPTER, cut(ADAPTER, (2,)))
    strategy = written(tmp_path / "src", cut(BASE, (4,)))
    with pytest.raises(UsageError, match="Give it with --src-strategy"):
        merge(base, lora, alpha=8)
    with pytest.raises(UsageError, match="Give it with --adapter-strategy"):
        merge(base, lora, alpha=8, src_strategy=strategy)
    save(tmp_path / "lora.ckpt", ADAPTER)
    with pytest.raises(UsageError, match="Leave --adapter-strategy out"):
        merge(base, tmp_path / "lora.ckpt", alpha=8, src_strategy=strategy, adapter_strategy=strategy)
    with pytest.raises(UsageError, match="there is no adapter by itself"):
        merge(base, alpha=8, src_strategy=strategy, adapter_strategy=strategy)


def two_steps(folder: Path, arrays: Arrays, source: Strategy) -> Path:
    """Ranks' files of two steps: the first has these arrays, the second zeros."""
    for step, factor in ((9, 1), (10, 0)):
        held = {name: array * np.array(factor, array.dtype) for name, array in arrays.items()}
        write_ranks(folder, held, source, lambda rank, step=step: f"llama_rank_{rank}-1_{step}.ckpt")
    return folder


@pytest.mark.parametrize("is_combined", [True, False])
def test_a_step_is_that_of_the_training(tmp_path: Path, expected: Arrays, is_combined: bool) -> None:
    arrays = BASE | ADAPTER if is_combined else ADAPTER
    source = cut(arrays, (2,))
    trained = two_steps(tmp_path / "trained", arrays, source)
    strategy = written(tmp_path / "trained.strategy", source)
    options = {"alpha": 8, "step": "1_9", "output": tmp_path / "out.ckpt"}
    if is_combined:
        merge(trained, src_strategy=strategy, **options)
    else:
        save(tmp_path / "base.ckpt", BASE)
        merge(tmp_path / "base.ckpt", trained, adapter_strategy=strategy, **options)
    assert_same_arrays(read_arrays(tmp_path / "out.ckpt"), expected)


def test_a_step_of_what_has_none_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", ADAPTER)
    with pytest.raises(UsageError, match="--step: expected folders of ranks"):
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, step="1_9")


def test_a_prefix_names_the_ranks_files(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", ADAPTER)
    strategy = written(tmp_path / "dst", cut(BASE, (2,)))
    options = {"alpha": 8, "dst_strategy": strategy, "output": tmp_path / "out"}
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", prefix="tuned_", **options)
    assert report.files == ("rank_0/tuned_0.ckpt", "rank_1/tuned_1.ckpt", "pet-manifest.json")
