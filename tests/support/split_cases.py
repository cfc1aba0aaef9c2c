"""Checkpoints that hold an adapter of each method, with what training leaves beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merge_cases import HIDDEN, Arrays, factors, llama, mindpet, peft, random, save, tree

from ckpt_tools import SplitReport, split
from surgery.errors import PetSurgeryError

BASE = llama()
PAIRS = factors()
SCALARS: Arrays = {"global_step": np.array(7, np.int32), "epoch_num": np.array([1], np.int32)}


def states_of(delta: Arrays) -> Arrays:
    """The optimizer's states of trained parameters."""
    return {f"{state}.{name}": np.zeros_like(array) for name, array in delta.items() for state in ("adam_m", "adam_v")}


def respelled(a: str, b: str) -> Arrays:
    """The adapter with other endings than MindPet's."""
    ends = {"mindpet_delta_lora_a": a, "mindpet_delta_lora_b": b}
    return {
        name.rpartition(".")[0] + "." + ends[name.rpartition(".")[2]]: array for name, array in mindpet(PAIRS).items()
    }


LORA: dict[str, Arrays] = {
    "mindpet": mindpet(PAIRS),
    "mindpet-bare": respelled("mindpet_delta_lora_A", "mindpet_delta_lora_B"),
    "tk": respelled("tk_delta_lora_a", "tk_delta_lora_b"),
    "pynative": respelled("lora_a", "lora_b"),
    "parallel-core": respelled("lora_A.weight", "lora_B.weight"),
}
"""Family to A and B."""

OTHERS: dict[str, Arrays] = {
    "ptuning2": {
        "mindpet_delta_ptuning2_embedding.embedding_table": random(1, 4, HIDDEN, dtype="fp16"),
        "mindpet_delta_ptuning2_trans.0.weight": random(2, 8, HIDDEN, dtype="fp16"),
        "mindpet_delta_ptuning2_prefix": np.arange(4),
    },
    "prefixtuning": {"mindpet_delta_prefixtuning_embedding.embedding_table": random(3, 4, HIDDEN)},
    "adapter": {
        "model.layers.0.attention.wq.mindpet_delta_adapter_block.mindpet_delta_adapter_down_sampler.weight": random(
            4, 2, HIDDEN
        )
    },
    "low_rank_adapter": {
        "model.layers.0.attention.wq.mindpet_delta_low_rank_adapter_down_sampler.weight_left": random(5, 2, 3)
    },
}
"""Method to the parameters that it adds."""

PEFT = peft(PAIRS)


def combined(folder: Path, delta: Arrays, name: str = "tuned.ckpt") -> Path:
    """A checkpoint of training: base, delta, states and scalars."""
    path = folder / name
    save(path, BASE | delta | states_of(delta) | SCALARS)
    return path


def refusal(folder: Path, exit_code: int, source: Path, **options: object) -> str:
    """The message of a split that is refused; nothing was written."""
    before = tree(folder)
    with pytest.raises(PetSurgeryError) as caught:
        split(source, **{"output": folder / "out", **options})
    assert caught.value.exit_code == exit_code, str(caught.value)
    assert tree(folder) == before
    return str(caught.value)


def names_in(report: SplitReport) -> list[str]:
    return [parameter.name for parameter in report.parameters]
