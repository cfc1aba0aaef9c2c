"""Folders of small shards, and the index that goes with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from helpers import materialise
from hostile import small_file

from ckpt_tools.formats.ckpt import layout_ckpt
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def add(folder: Path, file: str, *names: str, metadata: Mapping[str, str] | None = None) -> None:
    """A shard of two float32 numbers a tensor."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.full(2, len(name), np.float32) for name in names}
    if file.endswith(".ckpt"):
        tensors = [(name, Constant(array, dtype_of(array))) for name, array in arrays.items()]
        path.write_bytes(materialise(layout_ckpt(tensors), tensors))
    else:
        path.write_bytes(small_file(arrays, metadata))


def add_index(folder: Path, weight_map: Mapping[str, object], name: str = INDEX, **metadata: object) -> None:
    """An index with this map and these entries beside it."""
    (folder / name).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def write_two_shards(folder: Path) -> None:
    """Tensors a and b in `ONE`, c in `TWO`, and their index."""
    add(folder, ONE, "a", "b", metadata={"format": "pt", "part": "1"})
    add(folder, TWO, "c", metadata={"format": "pt", "part": "2"})
    add_index(folder, {"a": ONE, "b": ONE, "c": TWO}, total_size=24)
