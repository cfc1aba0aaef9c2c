"""Every command with every kind of output, on files of a few hundred bytes: on these, crashes are tried."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from merge_cases import factors, mindpet, random, save, write_folder
from rank_folders import strategy_of, write_ranks
from transform_cases import write_strategy

from ckpt_tools import merge
from ckpt_tools.cli.common import run
from ckpt_tools.cli.inject import inject_command
from ckpt_tools.cli.inspect import inspect_command
from ckpt_tools.cli.merge import merge_command
from ckpt_tools.cli.split import split_command
from ckpt_tools.cli.transform import transform_command
from ckpt_tools.cli.verify import verify_command
from ckpt_tools.layout.model import Layout

__all__ = ["CASES", "Case", "write_inputs"]

LAYER = "model.layers.0.attention.wq"
EMBEDDING, NORM = "model.tok_embeddings.embedding_weight", "model.layers.0.attention_norm.weight"
WEIGHTS = {EMBEDDING: random(1, 8, 16), f"{LAYER}.weight": random(2, 16, 16), NORM: random(3, 16)}
_ROWS, _COLUMNS, _ALL = Layout((2,), ((0,), ())), Layout((2,), ((), (0,))), Layout((2,), ((),))
SOURCE = strategy_of({EMBEDDING: _ROWS, f"{LAYER}.weight": _COLUMNS, NORM: _ALL})
TARGET = strategy_of({EMBEDDING: _COLUMNS, f"{LAYER}.weight": _ROWS, NORM: _ALL})


@dataclass(frozen=True)
class Case:
    """A command and what it writes.

    Attributes:
        name: What it is called.
        command: The command.
        arguments: Its arguments. It runs in an empty folder beside `in`, the folder of inputs.
        outputs: The names of all that it leaves where it runs.
        before: Arguments of runs that come before it, as those whose output it replaces.
        without_exchange: Whether the system exchanges no names in one step, as on some network file systems.
    """

    name: str
    command: click.Command
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    without_exchange: bool = False

    def calls(self) -> list[Callable[[], object]]:
        """What runs the command after those that come before it; each ends its process with its exit code."""
        return [self._call(arguments) for arguments in (*self.before, self.arguments)]

    def _call(self, arguments: tuple[str, ...]) -> Callable[[], object]:
        def call() -> None:
            if "--html" in arguments:  # a page says how long the run took, which is the same here in each
                time.monotonic = lambda: 0.0
            run(self.command, [*arguments, "--threads", "1", "-q"])

        return call

    def replacing(self, *others: str) -> Case:
        """The same where an output lies already, that of a run with other arguments."""
        return replace(
            self,
            name=f"{self.name}, replacing one",
            arguments=(*self.arguments, "--force"),
            before=((*self.arguments, *others),),
        )

    @property
    def reads_first(self) -> bool:
        """Whether all has been read before anything is written."""
        return self.outputs == ("page.html",)

    @property
    def is_forced(self) -> bool:
        """Whether it replaces what lies there."""
        return "--force" in self.arguments


def write_inputs(folder: Path) -> None:
    """All inputs of the cases."""
    adapter = mindpet(factors([LAYER], rank=2))
    folder.mkdir()
    save(folder / "base.ckpt", WEIGHTS)
    save(folder / "lora.ckpt", adapter)
    states = {f"adam_m.{name}": np.zeros_like(array) for name, array in adapter.items()}
    save(folder / "combined.ckpt", {**WEIGHTS, **adapter, **states, "global_step": np.array(7, np.int32)})
    save(folder / "tuned.ckpt", {**WEIGHTS, f"{LAYER}.weight": WEIGHTS[f"{LAYER}.weight"] + random(9, 16, 16)})
    write_folder(folder / "folder", WEIGHTS, shards=2)
    (folder / "folder" / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
    write_ranks(folder / "ranks", WEIGHTS, SOURCE)
    write_strategy(folder / "src.ckpt", SOURCE)
    write_strategy(folder / "dst.ckpt", TARGET)
    pet = {"pet_type": "lora", "lora_rank": 2, "lora_alpha": 4, "target_modules": ".*wq"}
    (folder / "run.json").write_text(json.dumps({"model": {"model_config": {"pet_config": pet}}}))
    made = folder / "made"
    merge(
        folder / "base.ckpt",
        folder / "lora.ckpt",
        alpha=8,
        output=made / "merged.ckpt",
        unmerge_patch=made / "undo.safetensors",
    )


_CKPT = ("out.ckpt", "out.pet-manifest.json")
_OUT = ("-o", "out")
_TO_CKPT, _TO_SAFETENSORS = ("-o", "out.ckpt"), ("-o", "out.safetensors")
_PAGE = ("--html", "page.html")
_SOURCE, _TARGET = ("--src-strategy", "../in/src.ckpt"), ("--dst-strategy", "../in/dst.ckpt")

_BASE, _FOLDER = ("../in/base.ckpt", "../in/lora.ckpt"), ("../in/folder", "../in/lora.ckpt")
_A8, _HALF = ("--alpha", "8"), ("--dtype", "fp16")


def _merging(name: str, *arguments: str, outputs: tuple[str, ...] = ("out",)) -> Case:
    return Case(f"merge {name}", merge_command, (*arguments, *_A8), outputs)


def _splitting(name: str, *arguments: str, outputs: tuple[str, ...] = ("out",)) -> Case:
    return Case(f"split {name}", split_command, ("../in/combined.ckpt", *_A8, *arguments), outputs)


def _injecting(name: str, *arguments: str, outputs: tuple[str, ...] = ("out",)) -> Case:
    return Case(f"inject {name}", inject_command, (*arguments, "--config", "../in/run.json"), outputs)


def _transforming(name: str, *arguments: str, outputs: tuple[str, ...] = ("out",)) -> Case:
    return Case(f"transform {name}", transform_command, ("../in/ranks", *_SOURCE, *arguments), outputs)


def _cases() -> list[Case]:
    ckpt = _merging("to a .ckpt", *_BASE, *_TO_CKPT, outputs=_CKPT)
    safetensors = _merging("to a .safetensors", *_BASE, *_TO_SAFETENSORS, outputs=("out.safetensors",))
    folder = _merging("to a folder", *_FOLDER, *_OUT)
    ranks = _merging("to ranks", *_BASE, *_TARGET, *_OUT)
    iteration = _merging("to Checkpoint 2.0", *_BASE, "--format", "iteration", *_OUT)
    patch = _merging(
        "with a patch", *_BASE, *_TO_CKPT, "--unmerge-patch", "undo.safetensors", outputs=(*_CKPT, "undo.safetensors")
    )
    folder_patch = _merging(
        "to a folder with a patch", *_FOLDER, *_OUT, "--unmerge-patch", "undo.safetensors",
        outputs=("out", "undo.safetensors"),
    )  # fmt: skip
    twice = ("../in/lora.ckpt", "../in/lora.ckpt", "--method", "svd")
    by_method = _merging("by a method", "../in/base.ckpt", *twice, *_TO_CKPT, outputs=_CKPT)
    combination = Case("combine to a folder", merge_command, ("--adapters-only", *twice, *_A8, *_OUT), ("out",))
    combination_ckpt = replace(
        combination,
        name="combine to a .ckpt",
        arguments=("--adapters-only", *twice, *_A8, *_TO_CKPT),
        outputs=(*_CKPT, "out.adapter_config.json"),
    )
    undone = ("../in/made/merged.ckpt", "../in/lora.ckpt", "--unmerge", "../in/made/undo.safetensors")
    undo = Case("undo to a .ckpt", merge_command, (*undone, *_TO_CKPT), ("out.ckpt",))
    undo_folder = Case("undo to a folder", merge_command, (*undone, "--format", "iteration", *_OUT), ("out",))
    adapter = _splitting("to a .ckpt", *_TO_CKPT, outputs=(*_CKPT, "out.adapter_config.json"))
    peft = _splitting("to a PEFT folder", "--format", "peft", *_OUT)
    remainder = _splitting(
        "with the remainder", *_TO_CKPT, "--remainder", "rest.ckpt",
        outputs=(*_CKPT, "out.adapter_config.json", "rest.ckpt", "rest.pet-manifest.json"),
    )  # fmt: skip
    remainder_folders = _splitting(
        "with the remainder, to folders", "--format", "peft", *_OUT, "--remainder", "rest", outputs=("out", "rest")
    )
    extraction = Case(
        "split by extraction", split_command,
        ("../in/tuned.ckpt", "--base", "../in/base.ckpt", "--rank", "2", *_TO_CKPT),
        (*_CKPT, "out.adapter_config.json"),
    )  # fmt: skip
    beside = ("out.adapter_config.json", "out.trainable_parameters.json")
    inject_ckpt = _injecting("to a .ckpt", "../in/base.ckpt", *_TO_CKPT, outputs=(*_CKPT, *beside))
    inject_folder = _injecting("to a folder", "../in/folder", *_OUT)
    inject_ranks = _injecting("to ranks", "../in/ranks", *_SOURCE, *_TARGET, *_OUT)
    inject_iteration = _injecting("to Checkpoint 2.0", "../in/base.ckpt", "--format", "iteration", *_OUT)
    to_ckpt = _transforming("to a .ckpt", *_TO_CKPT, outputs=_CKPT)
    to_folder = _transforming("to a folder", "--format", "safetensors", "--max-shard-size", "600B", *_OUT)
    to_ranks = _transforming("to ranks", *_TARGET, *_OUT)
    to_iteration = _transforming("to Checkpoint 2.0", "--format", "iteration", *_OUT)
    to_cut_iteration = _transforming("to Checkpoint 2.0 of ranks", "--format", "iteration", *_TARGET, *_OUT)
    last_ranks = replace(
        to_ranks, name="transform to ranks in parts", before=tuple((*to_ranks.arguments, "--ranks", n) for n in "01")
    )
    page = Case("inspect to a page", inspect_command, ("../in/base.ckpt", *_PAGE), ("page.html",))
    proof = Case("verify to a page", verify_command, (*_BASE, "../in/made/merged.ckpt", *_A8, *_PAGE), ("page.html",))
    forced = [
        ckpt.replacing(*_HALF),
        page.replacing("--all"),
        safetensors.replacing(*_HALF),
        folder.replacing(*_HALF),
        replace(folder.replacing(*_HALF), name="merge to a folder, replacing one in two steps", without_exchange=True),
        ranks.replacing(*_HALF),
        iteration.replacing(*_HALF),
        patch.replacing(*_HALF),
        folder_patch.replacing(*_HALF),
        replace(
            undo,
            name="undo to a .safetensors, replacing one",
            arguments=(*undone, *_TO_SAFETENSORS, "--force"),
            outputs=("out.safetensors",),
            before=(safetensors.arguments,),
        ),
        combination.replacing(*_HALF),
        adapter.replacing(*_HALF),
        peft.replacing(*_HALF),
        remainder.replacing(*_HALF),
        remainder_folders.replacing(*_HALF),
        extraction.replacing(*_HALF),
        inject_ckpt.replacing("--seed", "5"),
        inject_folder.replacing("--seed", "5"),
        to_ckpt.replacing(*_HALF),
        to_folder.replacing(*_HALF),
        to_ranks.replacing(*_HALF),
        to_iteration.replacing(*_HALF),
    ]
    fresh = [ckpt, safetensors, folder, ranks, iteration, patch, folder_patch, undo, undo_folder]
    fresh += [page, proof, by_method, combination, combination_ckpt]
    fresh += [adapter, peft, remainder, remainder_folders, extraction]
    fresh += [inject_ckpt, inject_folder, inject_ranks, inject_iteration]
    fresh += [to_ckpt, to_folder, to_ranks, to_iteration, to_cut_iteration, last_ranks]
    return [*fresh, *forced]


CASES = _cases()
