"""Bases to inject into, configurations, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_cases import HIDDEN, INNER, Arrays, llama, tree, write

from ckpt_tools import InjectReport, inject
from surgery.errors import PetSurgeryError

LORA: dict[str, Any] = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "target_modules": ".*wq|.*wv"}
ADAPTER: dict[str, Any] = {"pet_type": "adapter", "bottleneck_size": 6, "target_modules": ".*w2"}
LOW_RANK: dict[str, Any] = {
    "pet_type": "low_rank_adapter",
    "reduction_factor": 4,
    "low_rank_size": 2,
    "target_modules": ".*w1",
}
PTUNING2: dict[str, Any] = {
    "pet_type": "ptuning2",
    "pre_seq_len": 4,
    "prefix_projection": True,
    "projection_dim": 6,
    "num_layers": 2,
    "num_heads": 4,
    "kv_channels": HIDDEN // 4,
}
BITFIT: dict[str, Any] = {"pet_type": "bitfit"}

WEIGHTS = llama("fp32")

assert (HIDDEN, INNER) == (16, 24)


def with_biases() -> Arrays:
    """A LLaMA whose queries have a bias, as Qwen's do."""
    found: Arrays = {}
    for name, array in WEIGHTS.items():
        found[name] = array
        if name.endswith("wq.weight"):
            found[f"{name.removesuffix('weight')}bias"] = np.zeros(HIDDEN, np.float32)
    return found


def injected(folder: Path, config: Any = LORA, base: Arrays | None = None, **options: Any) -> InjectReport:
    """Inject into a LLaMA; the output is `out.ckpt` in the folder unless told otherwise."""
    write(folder / "base.ckpt", WEIGHTS if base is None else base)
    given = {"output": folder / "out.ckpt", **options}
    return inject(folder / "base.ckpt", config=config, **given)


def refusal(folder: Path, exit_code: int, config: Any = LORA, base: Arrays | None = None, **options: Any) -> str:
    """The message of an injection that fails; it wrote nothing, and each problem says what to do."""
    write(folder / "base.ckpt", WEIGHTS if base is None else base)
    before = tree(folder)
    with pytest.raises(PetSurgeryError) as caught:
        inject(folder / "base.ckpt", config=config, **{"output": folder / "out.ckpt", **options})
    assert caught.value.exit_code == exit_code, str(caught.value)
    assert tree(folder) == before
    for problem in caught.value.problems:
        assert problem.where
        assert problem.found
        assert problem.expected or problem.remedy or "more problems" in problem.found, str(problem)
    return str(caught.value)
