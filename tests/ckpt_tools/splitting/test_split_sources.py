"""Where a delta may lie: slices of ranks, with a strategy of all or of trainable parameters, and Checkpoint 2.0."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_cases import Arrays, save
from rank_folders import assert_same_arrays, read_arrays, strategy_of, write_ranks
from split_cases import BASE, LORA, SCALARS, combined, refusal, states_of
from transform_cases import COLUMNS, ROWS, write_strategy

from ckpt_tools import merge, open_checkpoint, split, transform
from ckpt_tools.layout.model import Layout, Strategy
from surgery.errors import MismatchError

DELTA = LORA["mindpet"]


def layouts(arrays: Arrays, matrix: tuple[int, ...]) -> dict[str, Layout]:
    cuts = {}
    for name, array in arrays.items():
        if array.ndim == 2:
            whole = name.endswith("_lora_a")
            cuts[name] = Layout(matrix, ((), ()) if whole else COLUMNS if ".wo." in name else ROWS)
        elif array.ndim == 1:
            cuts[name] = Layout(matrix, ((),))
    return cuts


def trained(folder: Path, strategy: Strategy, arrays: Arrays) -> Path:
    return write_ranks(folder / "trained", arrays | SCALARS, strategy, lambda rank: f"llama_rank_{rank}-1_5.ckpt")


@pytest.mark.parametrize("stages", [1, 2])
def test_slices_of_ranks_and_stages_become_one_adapter_and_one_base(tmp_path: Path, stages: int) -> None:
    arrays = BASE | DELTA | states_of(DELTA)
    cuts = layouts(arrays, (2, 2))
    halves = [
        {name: cut for name, cut in cuts.items() if (".layers.1." in name) == bool(stage) or "embed" in name}
        for stage in range(stages)
    ]
    strategy = strategy_of(*(halves if stages > 1 else [cuts]))
    source = trained(tmp_path, strategy, arrays)
    path = write_strategy(tmp_path / "strategy", strategy)
    report = split(source, src_strategy=path, alpha=8, output=tmp_path / "out", remainder=tmp_path / "rest.ckpt")
    assert_same_arrays(read_arrays(tmp_path / "out" / "adapter_model.ckpt"), DELTA)
    assert_same_arrays(read_arrays(tmp_path / "rest.ckpt"), BASE)
    assert {entry.name for entry in report.dropped} == {*states_of(DELTA), "global_step", "epoch_num"}


def test_a_strategy_of_trainable_parameters_is_enough_for_the_delta_alone(tmp_path: Path) -> None:
    """`only_trainable_params: True` is MindFormers' default."""
    arrays = BASE | DELTA
    source = trained(tmp_path, strategy_of(layouts(arrays, (4,))), arrays)
    path = write_strategy(tmp_path / "trainable", strategy_of(layouts(DELTA, (4,))))
    report = split(source, src_strategy=path, alpha=8, output=tmp_path / "out")
    assert_same_arrays(read_arrays(tmp_path / "out" / "adapter_model.ckpt"), DELTA)
    assert set(report.left) == set(BASE)
    assert report.base_fingerprint == ""
    text = refusal(
        tmp_path, 5, source, src_strategy=path, alpha=8, output=tmp_path / "x", remainder=tmp_path / "rest.ckpt"
    )
    assert "only_trainable_params: False" in text


def test_an_iteration_of_checkpoint_2_is_split(tmp_path: Path) -> None:
    arrays = BASE | DELTA | states_of(DELTA)
    strategy = strategy_of(layouts(arrays, (2,)))
    source = trained(tmp_path, strategy, arrays)
    path = write_strategy(tmp_path / "strategy", strategy)
    transform(source, src_strategy=path, dst_strategy=path, format="iteration", output=tmp_path / "saved")
    split(tmp_path / "saved", alpha=8, output=tmp_path / "out", remainder=tmp_path / "rest.safetensors")
    assert_same_arrays(read_arrays(tmp_path / "out" / "adapter_model.safetensors"), DELTA)
    assert_same_arrays(read_arrays(tmp_path / "rest.safetensors"), BASE)


def test_the_fingerprint_survives_slices_formats_names_and_wider_types(tmp_path: Path) -> None:
    arrays = BASE | DELTA
    strategy = strategy_of(layouts(arrays, (4,)))
    source = trained(tmp_path, strategy, arrays)
    path = write_strategy(tmp_path / "strategy", strategy)
    given = {"alpha": 8, "src_strategy": path}
    sliced = split(source, **given, output=tmp_path / "a").base_fingerprint
    transform(source, src_strategy=path, output=tmp_path / "whole.safetensors", dtype="fp32")
    whole = split(tmp_path / "whole.safetensors", alpha=8, output=tmp_path / "b").base_fingerprint
    assert sliced.startswith("pet-ft1:")
    assert sliced == whole


@pytest.mark.parametrize("name", ["delta", "delta.safetensors", "delta.ckpt"])
@pytest.mark.parametrize("alpha", [None, 4])
def test_an_adapter_alone_hands_its_bases_fingerprint_on(tmp_path: Path, name: str, alpha: float | None) -> None:
    first = split(combined(tmp_path, DELTA), alpha=8, output=tmp_path / name)
    given = {"format": "peft", "names": "hf", "dtype": "bf16", "alpha": alpha}
    again = split(tmp_path / name, **given, output=tmp_path / "again")
    assert again.base_fingerprint == first.base_fingerprint
    assert again.base_fingerprint.startswith("pet-ft1:")
    assert again.config["pet_surgery"]["base_fingerprint"] == first.base_fingerprint
    assert again.config["lora_alpha"] == (alpha or 8)
    third = split(tmp_path / "again", output=tmp_path / "third.safetensors")
    metadata = open_checkpoint(tmp_path / "third.safetensors").metadata
    assert metadata["pet_surgery.base_fingerprint"] == third.base_fingerprint == first.base_fingerprint
    save(tmp_path / "other.ckpt", {name: array + array.dtype.type(1) for name, array in BASE.items()})
    with pytest.raises(MismatchError, match="the base that the adapter was trained on"):
        merge(tmp_path / "other.ckpt", tmp_path / "third.safetensors", names="hf", output=tmp_path / "merged.ckpt")


def test_the_fingerprint_of_all_layers_is_none_of_some(tmp_path: Path) -> None:
    split(combined(tmp_path, DELTA), alpha=8, output=tmp_path / "delta")
    assert split(tmp_path / "delta", exclude=("*.layers.0.*",), output=tmp_path / "part").base_fingerprint == ""


def test_the_fingerprint_of_a_whole_base_is_none_of_its_layers(tmp_path: Path) -> None:
    save(tmp_path / "delta.safetensors", DELTA, {"pet_surgery.base_fingerprint": "pet-fp1:" + 64 * "0"})
    assert split(tmp_path / "delta.safetensors", alpha=8, output=tmp_path / "out").base_fingerprint == ""


def test_a_step_is_chosen(tmp_path: Path) -> None:
    strategy = strategy_of(layouts(DELTA, (2,)))
    for step, factor in ((9, 1.0), (10, 0.0)):
        held = {name: array * array.dtype.type(factor) for name, array in DELTA.items()}
        write_ranks(tmp_path / "in", held, strategy, lambda rank, step=step: f"llama_rank_{rank}-1_{step}.ckpt")
    path = write_strategy(tmp_path / "strategy", strategy)
    split(tmp_path / "in", src_strategy=path, step="1_9", alpha=8, output=tmp_path / "out")
    assert_same_arrays(read_arrays(tmp_path / "out" / "adapter_model.ckpt"), DELTA)
