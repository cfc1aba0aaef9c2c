"""Iteration folders of MindFormers' Checkpoint 2.0, built from the format's description and not by what is tested."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers import materialise

from ckpt_tools.formats.iteration.model import GlobalTensor
from ckpt_tools.formats.safetensors_layout import layout_safetensors
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.lazy import Region
from ckpt_tools.tensors.views import Constant

Tensors = Mapping[str, tuple[np.ndarray, tuple[int, ...]]]
"""Name to a whole tensor, and in how many parts each axis is cut."""

Offset = Callable[[tuple[int, ...], tuple[int, ...], tuple[int, ...]], list[int]]


def by_element(cell: tuple[int, ...], parts: tuple[int, ...], local: tuple[int, ...]) -> list[int]:
    """`global_offset` as it is documented."""
    return [index * length for index, length in zip(cell, local, strict=True)]


def by_slice(cell: tuple[int, ...], parts: tuple[int, ...], local: tuple[int, ...]) -> list[int]:
    """The index of the slice on each axis."""
    return list(cell)


def by_flat_slice(cell: tuple[int, ...], parts: tuple[int, ...], local: tuple[int, ...]) -> list[int]:
    """`global_offset` as MindFormers 1.9 writes it."""
    return [int(np.ravel_multi_index(cell, parts))] if parts else [0]


MEANINGS = {"element": by_element, "slice": by_slice, "flat": by_flat_slice}


def cells(parts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The cells of a grid in C order."""
    return list(itertools.product(*map(range, parts)))


def cell_region(shape: tuple[int, ...], parts: tuple[int, ...], cell: tuple[int, ...]) -> Region:
    """The place of a cell."""
    lengths = [size // count for size, count in zip(shape, parts, strict=True)]
    return tuple((index * length, (index + 1) * length) for index, length in zip(cell, lengths, strict=True))


def file_name(name: str, rank: int, ranks: int) -> str:
    """The file of a tensor: optimizer states are those that begin with `adam`."""
    return f"{'opt' if name.startswith('adam') else 'model'}-{rank:07d}-{ranks:07d}.safetensors"


def describe(tensors: Tensors, ranks: int, meaning: Offset = by_flat_slice) -> dict[str, Any]:
    """The `metadata.json` of ranks that hold the cells of each tensor in turn, replicas included."""
    described: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for name, (array, parts) in tensors.items():
        count = math.prod(parts)
        local = tuple(size // part for size, part in zip(array.shape, parts, strict=True))
        chunks = []
        for number, cell in enumerate(cells(parts)):
            offset = meaning(cell, parts, local)
            group = list(range(number, ranks, count))
            chunks.append({"global_offset": offset, "local_shape": list(local)})
            stored[repr((name, tuple(offset)))] = [
                {"file_name": file_name(name, rank, ranks), "storage_rank": rank, "rank_group": group} for rank in group
            ]
        matrix = [ranks // count, *parts]
        described[name] = {
            "properties": {
                "dtype": dtype_of(array).mindspore,
                "replica_id": [rank // count for rank in range(ranks)],
                "allow_shape_mismatch": False,
                "allow_to_save": True,
            },
            "global_shape": list(array.shape),
            "axis_fragmentations": list(parts),
            "layout": {
                "device_matrix": matrix,
                "tensor_map": [len(parts) - 1 - axis for axis in range(len(parts))],
                "interleaved_parallel": False,
                "alias_name": list("abcdefghijk"[: len(matrix)]),
                "rank_list": list(range(ranks)),
            },
            "chunk": chunks,
        }
    return {"state_dict_metadata": described, "storage_data": stored}


def write_file(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A safetensors file as MindSpore writes it."""
    named = [(name, Constant(np.array(array), dtype_of(array))) for name, array in arrays.items()]
    path.write_bytes(materialise(layout_safetensors(named, {"format": "ms"}), named))


def write_files(folder: Path, tensors: Tensors, ranks: int) -> None:
    """The weights files that `describe` names."""
    contents: dict[str, dict[str, np.ndarray]] = {}
    for rank in range(ranks):
        for name, (array, parts) in tensors.items():
            cell = cells(parts)[rank % math.prod(parts)]
            place = tuple(slice(*axis) for axis in cell_region(array.shape, parts, cell))
            contents.setdefault(file_name(name, rank, ranks), {})[name] = array[place]
    for file, arrays in contents.items():
        write_file(folder / file, arrays)


def write_iteration(
    folder: Path, tensors: Tensors, ranks: int, meaning: Offset = by_flat_slice, common: object = None
) -> dict[str, Any]:
    """A sound iteration folder; its metadata, to change and write again."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, tensors, ranks)
    document = describe(tensors, ranks, meaning)
    write_metadata(folder, document)
    (folder / "common.json").write_text(json.dumps({"global_step": 5} if common is None else common))
    return document


def write_metadata(folder: Path, document: object) -> None:
    """Write `metadata.json` as MindFormers does."""
    (folder / "metadata.json").write_text(json.dumps(document, ensure_ascii=False, indent=4), encoding="utf-8")


def joined(tensor: GlobalTensor) -> np.ndarray:
    """The whole of a tensor, from its chunks; asserts that they cover it exactly once."""
    whole = np.zeros(tensor.shape, tensor.dtype.numpy)
    seen = np.zeros(tensor.shape, np.int64)
    for chunk in tensor.chunks:
        place = tuple(slice(*axis) for axis in chunk.region)
        whole[place] = chunk.tensor.read_all()
        seen[place] += 1
    assert (seen == 1).all()
    return whole
