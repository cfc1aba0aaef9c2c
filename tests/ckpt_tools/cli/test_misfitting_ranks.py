"""Rank folders and strategies that are damaged or do not belong together, through every command that reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command
from every_command import caller
from inject_cases import LORA
from merge_cases import random, read, save, tree
from strategy_bytes import strategy_bytes
from transform_cases import SOURCE, TENSORS, write_case

from ckpt_tools.layout.model import Layout

STRATEGY = ("--src-strategy", "src.ckpt")
USES: dict[str, tuple[str, ...]] = {
    "transform": ("transform", "in", *STRATEGY, "-o", "out"),
    "merge": ("merge", "in", "lora.ckpt", "--alpha", "8", *STRATEGY, "-o", "out.ckpt"),
    "split": ("split", "in", "--include", "*", *STRATEGY, "-o", "out.ckpt"),
    "inject": ("inject", "in", "--config", "run.json", *STRATEGY, "-o", "out.ckpt"),
    "verify": ("verify", "in", "lora.ckpt", "whole.ckpt", "--alpha", "8", *STRATEGY),
}


def rank_file(rank: int) -> Path:
    return Path("in", f"rank_{rank}", f"llama_rank_{rank}-3_2.ckpt")


def with_layouts(**layouts: Layout) -> None:
    known = {name.replace("_", "."): layout for name, layout in layouts.items()}
    Path("src.ckpt").write_bytes(strategy_bytes(SOURCE.stages[0] | known))


def weights_as_strategy() -> None:
    shutil.copy("whole.ckpt", "src.ckpt")


def truncated_strategy() -> None:
    Path("src.ckpt").write_bytes(Path("src.ckpt").read_bytes()[:-3])


def only_trained_parameters() -> None:
    Path("src.ckpt").write_bytes(strategy_bytes({"norm.weight": SOURCE.stages[0]["norm.weight"]}))


def stages(*given: tuple[str, int, tuple[tuple[int, ...], ...]]) -> None:
    Path("src.ckpt").unlink()
    Path("src.ckpt").mkdir()
    for name, stage, cuts in given:
        layouts = {parameter: Layout((2, 2), cuts) for parameter in ("embedding.weight", "layer.weight")}
        Path("src.ckpt", name).write_bytes(strategy_bytes(layouts, stage=stage))


def another_step() -> None:
    rank_file(2).rename(rank_file(2).with_name("llama_rank_2-3_4.ckpt"))


def another_scalar() -> None:
    save(rank_file(3), read(rank_file(3)) | {"global_step": TENSORS["global_step"] + 1})


def rank_too_many() -> None:
    shutil.copytree("in/rank_0", "in/rank_4")
    Path("in/rank_4/llama_rank_0-3_2.ckpt").rename(rank_file(4))


FAULTS: dict[str, tuple[int, Callable[[], None]]] = {
    "38 weights given as a strategy": (4, weights_as_strategy),
    "39 a strategy that is cut": (4, truncated_strategy),
    "41 an axis out of range": (4, lambda: with_layouts(layer_weight=Layout((2, 2), ((2,), ())))),
    "41 a device matrix of more devices than others": (
        5,
        lambda: with_layouts(layer_weight=Layout((4, 4), ((0,), ()))),
    ),
    "42 a strategy of trained parameters alone": (5, only_trained_parameters),
    "43 a stage missing": (5, lambda: stages(("a", 1, ((0,), ())))),
    "43 a stage twice, with other layouts": (5, lambda: stages(("a", 0, ((0,), ())), ("b", 0, ((), (0,))))),
    "46 ranks at different steps": (5, another_step),
    "47 a scalar that differs between ranks": (5, another_scalar),
    "48 a rank folder missing": (5, lambda: shutil.rmtree("in/rank_1")),
    "48 a rank folder too many": (5, rank_too_many),
    "48 a rank folder without a checkpoint": (3, lambda: rank_file(1).unlink()),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four ranks, their strategy, what they are as one file, and an adapter for it."""
    folder = write_case(tmp_path_factory.mktemp("ranks"))
    (folder / "run.json").write_text(
        json.dumps({"pet_config": {**LORA, "target_modules": "layer"}, "pet_type": "lora"})
    )
    save(folder / "whole.ckpt", TENSORS)
    save(folder / "lora.ckpt", {"layer.lora_a": random(0, 2, 8), "layer.lora_b": random(1, 4, 2)})
    return folder


@pytest.fixture
def call(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return caller(capsys.readouterr)


@pytest.mark.parametrize("use", [use for use in USES if use != "verify"])
def test_sound_ranks_are_read(call: Command, use: str) -> None:
    code, _, err = call(*USES[use])
    assert code == 0, err


@pytest.mark.parametrize("fault", FAULTS)
def test_ranks_that_do_not_fit_are_refused(call: Command, tmp_path: Path, fault: str) -> None:
    code, spoil = FAULTS[fault]
    spoil()
    before = tree(tmp_path)
    for use in USES.values():
        found, out, err = call(*use)
        assert (found, out) == (code, ""), f"{use[0]}: {err}"
        assert tree(tmp_path) == before
