"""What lies beside an injected checkpoint: the adapter's configuration, what is trained, and the strategy.

In a folder they are called `adapter_config.json`, `trainable_parameters.json` and `strategy.ckpt`. Beside a single file
they begin with its stem, `llama.adapter_config.json`: a plain `adapter_config.json` there would be taken for that of
every adapter in the folder and below it, with its alpha. `surgery.config_files` finds either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ckpt_tools.layout import Strategy
from ckpt_tools.layout.strategy_writing import strategy_file
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.writing.plan import Entry, OutputBytes, OutputFile, Plan
from surgery.adapter_files import CONFIG_NAME, adapter_config
from surgery.config_files import config_beside
from surgery.freezing import FreezeReport
from surgery.tuning import Tuning

__all__ = ["STRATEGY_NAME", "TRAINABLE_NAME", "companion_files", "placed_beside", "with_companions"]

TRAINABLE_NAME = "trainable_parameters.json"
STRATEGY_NAME = "strategy.ckpt"


def companion_files(
    tuning: Tuning,
    adapter_fingerprint: str,
    freezing: FreezeReport,
    tensors: Mapping[str, LazyTensor],
    strategy: Strategy | None,
) -> dict[str, bytes]:
    """The files that go with an output, by the name that they have in a folder.

    Args:
        tuning: How the network is tuned.
        adapter_fingerprint: That of the weights that LoRA changes; empty of other methods.
        freezing: What is trained and what is not.
        tensors: The whole network's tensors.
        strategy: How an output for ranks is cut, of every tensor; None for a whole one.
    """
    files = {
        CONFIG_NAME: _json(adapter_config(tuning.config, adapter_fingerprint, tuning.peft)),
        TRAINABLE_NAME: _json(_trainable(tuning, freezing, tensors)),
    }
    return files if strategy is None else {**files, STRATEGY_NAME: strategy_file(strategy.stages)}


def with_companions(plan: Plan, files: Mapping[str, bytes]) -> Plan:
    """A folder's plan with these files too, in the place of those of the base that have their names."""
    checkpoints: list[Entry] = []
    others: list[Entry] = []
    for entry in plan.entries:
        if isinstance(entry, OutputFile):
            checkpoints.append(entry)
        elif entry.name not in files:
            others.append(entry)
    own = (OutputBytes(name, data) for name, data in files.items())
    # What makes a folder complete, as an index, stays last.
    return replace(plan, entries=(*checkpoints, *own, *others))


def placed_beside(output: Path, files: Mapping[str, bytes]) -> dict[Path, bytes]:
    """The paths that the files have beside a single file."""
    paths = {CONFIG_NAME: config_beside(output)}
    return {paths.get(name, output.with_name(f"{output.stem}.{name}")): data for name, data in files.items()}


def _trainable(tuning: Tuning, freezing: FreezeReport, tensors: Mapping[str, LazyTensor]) -> dict[str, object]:
    lists: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    for decision in freezing.decisions:
        parameter = decision.parameter
        lists[decision.is_trained].append(
            {
                "name": parameter.name,
                "shape": list(tensors[parameter.name].shape),
                "dtype": parameter.dtype,
                "elements": parameter.elements,
                "bytes": parameter.nbytes,
            }
        )
    totals = {
        f"{word}_{what}": sum(getattr(d.parameter, attribute) for d in freezing.decisions if d.is_trained is is_trained)
        for word, is_trained in (("trainable", True), ("frozen", False))
        for what, attribute in (("elements", "elements"), ("bytes", "nbytes"))
    }
    return {"pet_type": tuning.config.pet_type, **totals, "trainable": lists[True], "frozen": lists[False]}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
