"""What type checkers see of the installed packages: `mypy --strict` has to accept it, and every `assert_type`.

CI runs mypy on it beside the wheel, away from the sources: a name without a type, or a `py.typed` that was left out,
is an error. It is not executed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typing_extensions import assert_type

import ckpt_tools
import surgery
from ckpt_tools import (
    Checkpoint,
    InjectReport,
    InspectReport,
    ManifestReport,
    MergeReport,
    SplitReport,
    TransformReport,
    UnmergeReport,
    VerifyReport,
)
from ckpt_tools.layout import Layout, Strategy, read_strategy
from ckpt_tools.pages import write_page
from ckpt_tools.progress import Progress
from ckpt_tools.reports import FoldedWeight
from surgery.errors import MismatchError, PetSurgeryError, Problem
from surgery.lowrank import lora_delta
from surgery.methods import Method, method_for


class Lines:
    """A progress of one's own."""

    def start(self, total_bytes: int, what: str) -> None: ...

    def advance(self, done_bytes: int) -> None: ...

    def finish(self) -> None: ...


def operations(base: Path, adapter: str, progress: Progress) -> None:
    """Each operation takes paths and strings, and returns its report."""
    merged = ckpt_tools.merge(base, adapter, alpha=[16.0], output="merged.ckpt", max_shard_size="5GB", progress=Lines())
    assert_type(merged, MergeReport)
    assert_type(merged.weights, tuple[FoldedWeight, ...])
    assert_type(merged.weights[0].relative_delta, "float | None")
    assert_type(ckpt_tools.unmerge("merged.ckpt", adapter, patch="a.patch", progress=progress), UnmergeReport)
    assert_type(ckpt_tools.split("combined.ckpt", output="adapter", format="peft"), SplitReport)
    assert_type(ckpt_tools.transform("run", src_strategy="strategy", output="out"), TransformReport)
    assert_type(ckpt_tools.inject(base, config="run.yaml", output="out.ckpt"), InjectReport)
    assert_type(ckpt_tools.verify(base, adapter, merged="merged.ckpt"), VerifyReport)
    assert_type(ckpt_tools.verify_output("merged.ckpt"), ManifestReport)
    assert_type(ckpt_tools.inspect_checkpoint(base), InspectReport)
    write_page(merged, "page.html", force=True)


def checkpoints() -> None:
    """Opening, reading and saving."""
    opened = ckpt_tools.open_checkpoint("base.ckpt")
    assert_type(opened, Checkpoint)
    for name, tensor in opened.tensors.items():
        assert_type(name, str)
        assert_type(tensor.shape, tuple[int, ...])
        assert_type(tensor.read_all(), np.ndarray)
    ckpt_tools.save_checkpoint("copy.safetensors", opened.tensors, metadata={"format": "pt"})


def layouts() -> None:
    """Strategies, by stage and name."""
    strategy = read_strategy("strategy")
    assert_type(strategy, Strategy)
    assert_type(strategy.stages[0]["a.weight"], Layout)


def adapters(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """Names, configurations and algebra."""
    parameter = surgery.classify("model.layers.0.attention.wq.mindpet_delta_lora_a")
    assert_type(parameter.role, surgery.Role)
    assert_type(surgery.read_peft_config("adapter_config.json"), surgery.LoraConfig)
    assert_type(surgery.near_names("wq", ["wk"]), list[str])
    assert_type(method_for(surgery.LoraPetConfig(lora_rank=4)), Method)
    lora_delta(left, right, 2.0, out)


def networks() -> None:
    """What needs MindSpore has types all the same."""
    injection = surgery.inject(None, {"pet_type": "lora"})
    assert_type(injection, surgery.Injection)
    assert_type(injection.report, surgery.InjectionReport)
    assert_type(surgery.known_adapters(), dict[str, type[surgery.PetAdapter]])


def errors() -> int:
    """What can go wrong is a tree."""
    try:
        operations(Path("base.ckpt"), "lora.ckpt", Lines())
    except MismatchError as error:
        assert_type(error.problems, tuple[Problem, ...])
        return error.exit_code
    except PetSurgeryError as error:
        return error.exit_code
    return 0
