"""Injecting from and into slices of ranks: how new parameters are cut, and a strategy that has all of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inject_cases import ADAPTER, LORA, LOW_RANK, PTUNING2, WEIGHTS, injected, refusal, with_biases
from merge_cases import contents, hugging_face, read
from rank_folders import assert_same_arrays, read_arrays, slices_of_rank, strategy_of, write_ranks
from strategy_bytes import strategy_bytes
from transform_cases import write_strategy

from ckpt_tools import inject, open_checkpoint, transform
from ckpt_tools.layout import Layout, Strategy, read_strategy

MATRIX = (2, 1, 4)  # data, unused, model parallel
COLUMN, ROW = ((0,), ()), ((), (0,))
METHODS: dict[str, dict[str, Any]] = {
    config["pet_type"]: {**config, **({} if config is PTUNING2 else {"target_modules": ".*wq|.*wo|.*w2"})}
    for config in (LORA, ADAPTER, LOW_RANK, PTUNING2)
}


def layout_of(name: str, array: np.ndarray) -> Layout:
    """As MindFormers cuts a LLaMA: by columns into a block, and by rows out of it."""
    if array.ndim != 2 or "norm" in name:
        return Layout(MATRIX, ((),) * array.ndim)
    return Layout(MATRIX, ROW if ".wo." in name or ".w2." in name else COLUMN)


def target(*stages: dict[str, np.ndarray]) -> Strategy:
    return strategy_of(*({name: layout_of(name, array) for name, array in stage.items()} for stage in stages))


def read_rank(folder: Path, rank: int) -> dict[str, np.ndarray]:
    return read_arrays(next((folder / f"rank_{rank}").iterdir()))


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_ranks_hold_the_slices_of_what_a_whole_output_has(tmp_path: Path, config: dict[str, Any]) -> None:
    injected(tmp_path, config)
    whole = read(tmp_path / "out.ckpt")
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    report = injected(tmp_path, config, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt")
    assert report.dst_ranks == 8
    written = read_strategy(tmp_path / "ranks" / "strategy.ckpt")
    assert set(written.stages[0]) == set(whole)
    for rank in range(8):
        found = read_rank(tmp_path / "ranks", rank)
        assert list(found) == list(whole)
        assert_same_arrays(found, slices_of_rank(whole, written, rank))
    again = transform(
        tmp_path / "ranks", src_strategy=tmp_path / "ranks" / "strategy.ckpt", output=tmp_path / "again.ckpt"
    )
    assert not again.warnings
    assert contents(tmp_path / "again.ckpt") == contents(tmp_path / "out.ckpt")


def test_a_is_cut_as_the_layers_input_and_b_as_its_output(tmp_path: Path) -> None:
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    injected(tmp_path, METHODS["lora"], output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt")
    layouts = read_strategy(tmp_path / "ranks" / "strategy.ckpt").stages[0]
    wq, wo = "model.layers.0.attention.wq.mindpet_delta_lora_", "model.layers.0.attention.wo.mindpet_delta_lora_"
    assert {name: layouts[name].tensor_map for name in (f"{wq}a", f"{wq}b", f"{wo}a", f"{wo}b")} == {
        f"{wq}a": ((), ()),
        f"{wq}b": ((0,), ()),
        f"{wo}a": ((), (0,)),
        f"{wo}b": ((), ()),
    }


def test_bottlenecks_are_cut_as_their_layers_output(tmp_path: Path) -> None:
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    for name, expected in (
        ("adapter", {"down_sampler.weight": ((), (0,)), "down_sampler.bias": ((),), "up_sampler.weight": ((0,), ())}),
        (
            "low_rank_adapter",
            {"down_sampler.mindpet_delta_low_rank_adapter_weight_left": ((0,), ()), "up_sampler.bias": ((0,),)},
        ),
    ):
        injected(tmp_path, METHODS[name], output=tmp_path / name, dst_strategy=tmp_path / "dst.ckpt")
        layouts = read_strategy(tmp_path / name / "strategy.ckpt").stages[0]
        for tail, tensor_map in expected.items():
            (key,) = (key for key in layouts if "layers.0.attention.wq" in key and key.endswith(tail))
            assert layouts[key].tensor_map == tensor_map


def test_layouts_of_new_parameters_that_the_strategy_has_are_kept(tmp_path: Path) -> None:
    name = "model.layers.0.attention.wq.mindpet_delta_lora_b"
    chosen = Layout(MATRIX, ((2,), ()))
    layouts = {**target(WEIGHTS).stages[0], name: chosen}
    (tmp_path / "dst.ckpt").write_bytes(strategy_bytes(layouts))
    injected(tmp_path, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt")
    assert read_strategy(tmp_path / "ranks" / "strategy.ckpt").stages[0][name] == chosen


def test_a_new_parameter_is_in_no_other_stage_than_the_strategy_has_it_in(tmp_path: Path) -> None:
    name = "model.layers.0.attention.wq.mindpet_delta_lora_b"
    weights = target(WEIGHTS).stages[0]
    second = {"model.norm_out.weight": weights["model.norm_out.weight"], name: Layout(MATRIX, ((0,), ()))}
    first = {key: layout for key, layout in weights.items() if key not in second}
    write_strategy(tmp_path / "dst", strategy_of(first, second))
    injected(tmp_path, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst")
    holding = [rank for rank in range(16) if name in read_rank(tmp_path / "ranks", rank)]
    assert holding == list(range(8, 16))


def test_optimizer_shards_of_a_layer_are_not_handed_on(tmp_path: Path) -> None:
    layouts = dict(target(WEIGHTS).stages[0])
    weight = "model.layers.0.attention.wq.weight"
    layouts[weight] = Layout((2, 4), COLUMN, shard_step=4, shard_size=2)
    (tmp_path / "dst.ckpt").write_bytes(strategy_bytes(layouts))
    injected(tmp_path, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt")
    written = read_strategy(tmp_path / "ranks" / "strategy.ckpt").stages[0]
    assert written[weight] == layouts[weight]
    b = read_rank(tmp_path / "ranks", 0)["model.layers.0.attention.wq.mindpet_delta_lora_b"]
    assert b.shape == (4, 4)


@pytest.mark.parametrize("config", [LORA, PTUNING2], ids=lambda config: config["pet_type"])
def test_each_stage_of_a_pipeline_has_the_parameters_of_its_layers(tmp_path: Path, config: dict[str, Any]) -> None:
    first = {name: array for name, array in WEIGHTS.items() if "layers.1" not in name and "lm_head" not in name}
    second = {name: array for name, array in WEIGHTS.items() if name not in first}
    write_strategy(tmp_path / "dst", target(first, second))
    injected(tmp_path, config)
    injected(tmp_path, config, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst")
    written = read_strategy(tmp_path / "ranks" / "strategy.ckpt")
    assert len(written.stages) == 2
    new = [name for name in read(tmp_path / "out.ckpt") if "delta" in name]
    for name, (number, stage) in itertools.product(new, enumerate(written.stages)):
        assert (name in stage) == (number == 0 if config is PTUNING2 else f"layers.{number}" in name)
    strategy = tmp_path / "ranks" / "strategy.ckpt"
    transform(tmp_path / "ranks", src_strategy=strategy, output=tmp_path / "again.ckpt")
    assert_same_arrays(read(tmp_path / "again.ckpt"), read(tmp_path / "out.ckpt"))


def test_a_base_in_slices_gives_what_the_whole_one_gives(tmp_path: Path) -> None:
    strategy = target(WEIGHTS)
    write_ranks(tmp_path / "in", WEIGHTS, strategy)
    write_strategy(tmp_path / "src.ckpt", strategy)
    injected(tmp_path)
    report = inject(tmp_path / "in", config=LORA, src_strategy=tmp_path / "src.ckpt", output=tmp_path / "of-ranks.ckpt")
    assert (report.src_ranks, report.step) == (8, "3_2")
    assert_same_arrays(read(tmp_path / "of-ranks.ckpt"), read(tmp_path / "out.ckpt"))


def test_the_ranks_of_an_array_of_jobs_are_joined_by_a_last_call(tmp_path: Path) -> None:
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    injected(tmp_path, output=tmp_path / "whole", dst_strategy=tmp_path / "dst.ckpt")
    options = {"config": LORA, "output": tmp_path / "parts", "dst_strategy": tmp_path / "dst.ckpt"}
    for ranks in ("0-3", "4-7"):
        assert inject(tmp_path / "base.ckpt", ranks=ranks, **options).ranks == ranks
        assert not (tmp_path / "parts").exists()
    assert len(inject(tmp_path / "base.ckpt", **options).resumed) == 8
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_only_delta_is_cut_for_ranks_too(tmp_path: Path) -> None:
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    report = injected(tmp_path, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt", only_delta=True)
    names = [one.name for one in report.added]
    assert list(read_rank(tmp_path / "ranks", 7)) == names
    assert set(read_strategy(tmp_path / "ranks" / "strategy.ckpt").stages[0]) == set(names)


def test_checkpoint_2_is_written_with_the_new_parameters(tmp_path: Path) -> None:
    injected(tmp_path)
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    injected(tmp_path, output=tmp_path / "it", dst_strategy=tmp_path / "dst.ckpt", format="iteration")
    assert (tmp_path / "it" / "adapter_config.json").is_file()
    transform(tmp_path / "it", output=tmp_path / "again.ckpt")
    assert_same_arrays(read(tmp_path / "again.ckpt"), read(tmp_path / "out.ckpt"))


def test_a_strategy_of_another_model_is_refused(tmp_path: Path) -> None:
    layouts = {f"other.{name}": layout for name, layout in target(WEIGHTS).stages[0].items()}
    (tmp_path / "dst.ckpt").write_bytes(strategy_bytes(layouts))
    refusal(tmp_path, 5, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt")


def test_a_strategy_without_a_parameter_of_the_base_is_refused(tmp_path: Path) -> None:
    base = with_biases()
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    message = refusal(tmp_path, 5, LORA, base, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt")
    assert "model.layers.0.attention.wq.bias: no layout in the target's strategy" in message


def test_an_earlier_output_for_ranks_is_replaced_by_force(tmp_path: Path) -> None:
    write_strategy(tmp_path / "dst.ckpt", target(WEIGHTS))
    for seed in (0, 1):
        injected(tmp_path, output=tmp_path / "ranks", dst_strategy=tmp_path / "dst.ckpt", seed=seed, force=True)
    assert open_checkpoint(tmp_path / "ranks" / "rank_0" / "checkpoint_0.ckpt").tensors


def test_what_the_sources_strategy_does_not_list_is_whole_on_every_rank_under_its_new_name_too(tmp_path: Path) -> None:
    source = {name: layout for name, layout in target(WEIGHTS).stages[0].items() if "norm_out" not in name}
    write_ranks(tmp_path / "in", WEIGHTS, strategy_of(source))
    write_strategy(tmp_path / "src.ckpt", strategy_of(source))
    dst = {
        name: layout for name, layout in target(hugging_face(WEIGHTS)).stages[0].items() if name != "model.norm.weight"
    }
    write_strategy(tmp_path / "dst.ckpt", strategy_of(dst))
    inject(
        tmp_path / "in",
        config={"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]},
        src_strategy=tmp_path / "src.ckpt",
        dst_strategy=tmp_path / "dst.ckpt",
        replicated=["*norm_out*"],
        names="hf",
        output=tmp_path / "ranks",
    )
    norm = WEIGHTS["model.norm_out.weight"]
    assert read_rank(tmp_path / "ranks", 5)["model.norm.weight"].tobytes() == norm.tobytes()
    layouts = read_strategy(tmp_path / "ranks" / "strategy.ckpt").stages[0]
    assert layouts["model.norm.weight"].tensor_map == ((),)
