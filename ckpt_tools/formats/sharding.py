"""Weights planned as shards of a limited size, and the index that says which shard holds what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ckpt_tools.formats.index import INDEX_SUFFIX
from ckpt_tools.formats.model import NamedTensor

__all__ = ["index_json", "index_name", "plan_shards", "weights_name"]

# The names that transformers and MindFormers look for.
_WEIGHTS_STEMS = {".safetensors": "model", ".ckpt": "mindspore_model"}


def plan_shards(
    tensors: Sequence[NamedTensor], max_shard_bytes: int, extension: str
) -> list[tuple[str, list[NamedTensor]]]:
    """Files of at most `max_shard_bytes` of contents each, filled in the order given.

    A tensor that is larger has a file of its own. The names are those that transformers and MindFormers look for:
    `model-00001-of-00003.safetensors`, `mindspore_model-00001-of-00003.ckpt`, without numbers where one file suffices.

    Args:
        tensors: Names and tensors.
        max_shard_bytes: The limit of a file's contents; its header comes on top.
        extension: `.safetensors` or `.ckpt`.
    """
    groups: list[list[NamedTensor]] = [[]]
    filled = 0
    for name, tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, tensor))
        filled += tensor.nbytes
    stem = _WEIGHTS_STEMS[extension]
    if len(groups) == 1:
        return [(weights_name(extension), groups[0])]
    return [
        (f"{stem}-{number:05d}-of-{len(groups):05d}{extension}", group) for number, group in enumerate(groups, start=1)
    ]


def weights_name(extension: str) -> str:
    """The file name of weights that are not sharded, for `.safetensors` or `.ckpt`."""
    return _WEIGHTS_STEMS[extension] + extension


def index_name(extension: str) -> str:
    """The file name of the index of `.safetensors` or `.ckpt` shards."""
    return weights_name(extension) + INDEX_SUFFIX


def index_json(shards: Sequence[tuple[str, Sequence[NamedTensor]]], metadata: Mapping[str, str]) -> bytes:
    """The index of these shards, as Hugging Face writes it: sorted, indented by two, a newline at the end.

    Args:
        shards: File names with the tensors they hold.
        metadata: Strings that go beside `total_size`, which is in bytes. A `total_parameters` is counted again.
    """
    tensors = [tensor for _, group in shards for _, tensor in group]
    entries: dict[str, object] = {**metadata, "total_size": sum(tensor.nbytes for tensor in tensors)}
    if "total_parameters" in metadata:
        entries["total_parameters"] = sum(tensor.size for tensor in tensors)
    weight_map = {name: file for file, group in shards for name, _ in group}
    text = json.dumps({"metadata": entries, "weight_map": weight_map}, indent=2, sort_keys=True)
    return (text + "\n").encode("utf-8")
