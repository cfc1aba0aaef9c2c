"""Large models that take hardly any room on a disk, and adapters of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from merge_cases import NUMPY, Arrays, random

from ckpt_tools.formats.safetensors_layout import layout_safetensors
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.views import Constant

__all__ = ["COLUMNS", "RANK", "ROWS", "sparse_base", "sparse_factors"]

MIB = 2**20
ROWS, COLUMNS, RANK = 2048, 4096, 8
LAYER_BYTES = 2 * ROWS * COLUMNS


def sparse_base(path: Path, mib: int) -> list[str]:
    """A base of zeros, whose file takes hardly any room; its layers."""
    names = [f"model.layers.{number}.attention.wq" for number in range(mib * MIB // LAYER_BYTES)]
    zeros = Constant(np.broadcast_to(np.zeros((), NUMPY["bf16"]), (ROWS, COLUMNS)), BY_NAME["bf16"])
    layout = layout_safetensors([(f"{name}.weight", zeros) for name in names], {})
    with path.open("wb") as file:
        for offset, data in layout.literals:
            file.seek(offset)
            file.write(data)
        file.truncate(layout.size)
    return names


def sparse_factors(names: Iterable[str]) -> Arrays:
    """A and B of all layers, under the layers' names: `X.A` and `X.B`."""
    names = list(names)
    pairs = {f"{name}.A": random(0, RANK, COLUMNS, dtype="bf16") for name in names}
    return pairs | {f"{name}.B": random(1, ROWS, RANK, dtype="bf16") for name in names}
