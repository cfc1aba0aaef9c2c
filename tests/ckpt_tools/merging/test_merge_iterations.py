"""Merging out of iterations of MindFormers' Checkpoint 2.0 and into them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from iteration_folders import joined, write_file, write_iteration, write_metadata
from merge_cases import BASE, PAIRS, Arrays, mindpet, save, tree
from rank_folders import assert_same_arrays, read_arrays, read_ranks, slices_of_rank, strategy_of
from strategy_bytes import strategy_bytes

from ckpt_tools import merge
from ckpt_tools.formats import MODEL, read_iteration
from ckpt_tools.layout.model import Layout, Strategy
from surgery.errors import MismatchError, UsageError

ADAPTER = mindpet(PAIRS)
# Of MindFormers' AdamW, and of mint's, which its dynamic graphs use.
STATES = {
    f"{state}.{name}": np.ones_like(array)
    for state in ("adam_m", "adam_v", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    for name, array in ADAPTER.items()
}
SCALARS = {"learning_rate": np.array(0.1, np.float32), "global_step": np.array([7], np.int32)}


def write_run(folder: Path, arrays: Arrays, number: int = 12) -> Path:
    """Four ranks that hold rows of every matrix twice."""
    tensors = {name: (array, (2,) + (1,) * (array.ndim - 1)) for name, array in arrays.items()}
    common = {"global_step": 7, "step_num": number, "epoch_num": 1}
    write_iteration(folder / f"iteration_{number:08d}", tensors, 4, common=common)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(number))
    return folder


def add_scalars(folder: Path, arrays: Arrays) -> None:
    """Put what MindFormers does not list into the files of the optimizer, as it does."""
    document = json.loads((folder / "metadata.json").read_text())
    for path in folder.glob("opt-*.safetensors"):
        write_file(path, read_arrays(path) | arrays)
    write_metadata(folder, document)


def rows(arrays: Arrays, ranks: int) -> Strategy:
    return strategy_of(
        {name: Layout((ranks,), ((0,),) + ((),) * (array.ndim - 1)) for name, array in arrays.items()},
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What a merge of whole files makes."""
    folder = tmp_path_factory.mktemp("whole")
    save(folder / "base.ckpt", BASE)
    save(folder / "lora.ckpt", ADAPTER)
    merge(folder / "base.ckpt", folder / "lora.ckpt", alpha=8, output=folder / "out.ckpt")
    return read_arrays(folder / "out.ckpt")


def read_merged(folder: Path) -> Arrays:
    iteration = read_iteration(folder)
    assert {tensor.kind for tensor in iteration.tensors.values()} == {MODEL}
    assert not iteration.unlisted
    return {name: joined(tensor) for name, tensor in iteration.tensors.items()}


@pytest.mark.parametrize("adapter", ["a file", "an iteration", "in the same iteration"])
@pytest.mark.parametrize("target", ["whole", "ranks", "an iteration", "an iteration of ranks"])
def test_a_merge_of_iterations_has_the_bits_of_a_merge_of_the_whole(
    tmp_path: Path, expected: Arrays, adapter: str, target: str
) -> None:
    together = adapter == "in the same iteration"
    base = write_run(tmp_path / "base", BASE | ADAPTER | STATES if together else BASE)
    adapters = []
    if together:
        add_scalars(base / "iteration_00000012", SCALARS)
    elif adapter == "a file":
        save(tmp_path / "lora.ckpt", ADAPTER)
        adapters = [tmp_path / "lora.ckpt"]
    else:
        adapters = [write_run(tmp_path / "lora", ADAPTER | STATES, 3)]
    options: dict[str, object] = {"output": tmp_path / ("out.ckpt" if target == "whole" else "out")}
    strategy = rows(expected, 4)
    if "ranks" in target:
        (tmp_path / "dst").write_bytes(strategy_bytes(strategy.stages[0]))
        options["dst_strategy"] = tmp_path / "dst"
    if "iteration" in target:
        options["format"] = "iteration"
    before = tree(base)
    report = merge(base, *adapters, alpha=8, **options)
    assert tree(base) == before
    assert len(report.weights) == 4
    if together:
        assert {dropped.name for dropped in report.dropped} >= {*STATES, *SCALARS}
    if target == "whole":
        assert_same_arrays(read_arrays(tmp_path / "out.ckpt"), expected)
    elif target == "ranks":
        for rank, held in enumerate(read_ranks(tmp_path / "out")):
            assert_same_arrays(held, slices_of_rank(expected, strategy, rank))
    else:
        assert_same_arrays(read_merged(tmp_path / "out"), expected)
        merged = read_iteration(tmp_path / "out")
        assert (merged.number, merged.common["global_step"], merged.common["step_num"]) == (12, 7, 12)
        assert len(merged.files) == (4 if "ranks" in target else 1)


def test_a_base_of_no_training_becomes_iteration_0(tmp_path: Path, expected: Arrays) -> None:
    save(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", ADAPTER)
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, output=tmp_path / "out", format="iteration")
    assert_same_arrays(read_merged(tmp_path / "out"), expected)
    merged = read_iteration(tmp_path / "out")
    assert merged.number == 0
    assert [merged.common[key] for key in ("epoch_num", "step_num", "global_step")] == [0, 0, 0]


def test_the_default_output_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("base.ckpt"), BASE)
    save(Path("lora.ckpt"), ADAPTER)
    assert merge("base.ckpt", "lora.ckpt", alpha=8, format="iteration").output == "base-merged"
    assert merge("base-merged", "lora.ckpt", alpha=8).output == "base-merged-merged"


@pytest.mark.parametrize("option", ["src_strategy", "adapter_strategy"])
def test_a_strategy_beside_an_iteration_is_refused(tmp_path: Path, option: str) -> None:
    base = write_run(tmp_path / "base", BASE)
    lora = write_run(tmp_path / "lora", ADAPTER)
    (tmp_path / "strategy").write_bytes(strategy_bytes(rows(BASE, 2).stages[0]))
    with pytest.raises(UsageError, match=f"Leave --{option.replace('_', '-')} out"):
        merge(base, lora, alpha=8, output=tmp_path / "out", **{option: tmp_path / "strategy"})
    assert not (tmp_path / "out").exists()


def test_weights_that_metadata_does_not_list_are_refused_and_optimizer_states_are_not(
    tmp_path: Path, expected: Arrays
) -> None:
    base = write_run(tmp_path / "base", BASE | ADAPTER | {"adam_m.x": np.ones(2, np.float32)})
    add_scalars(base / "iteration_00000012", {"adam_v.lm_head.weight": np.ones(3, np.float32)})
    merge(base, alpha=8, output=tmp_path / "out.ckpt")
    assert_same_arrays(read_arrays(tmp_path / "out.ckpt"), expected)
    add_scalars(base / "iteration_00000012", {"late.weight": np.ones(3, np.float32)})
    with pytest.raises(MismatchError, match=r"nothing about late\.weight"):
        merge(base, alpha=8, output=tmp_path / "again.ckpt")
