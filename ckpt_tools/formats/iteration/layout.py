"""What MindFormers' Checkpoint 2.0 is written from: the files of an iteration, and the texts that describe them.

Nothing is written here. MindFormers 1.9 loads by each tensor's `layout`: it works out which rank holds which slice, and
looks that rank's file up in `storage_data`. So a layout is made for each tensor from the slices that the ranks have,
whatever strategy they come from: the device matrix is the grid of slices, before it an axis for replicas, and the rank
list says which rank has which cell. That expresses every way to cut a tensor into equal parts, and no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpt_tools.formats.iteration.folder import MODEL, OPTIMIZER, WeightsFileName
from ckpt_tools.formats.iteration.slices import RankSlice, SlicedTensor, gather_slices
from surgery.errors import Problem, UsageError

__all__ = ["IterationLayout", "RankFile", "common_json", "layout_iteration", "tracker_text"]

# The fields of MindFormers' CommonInfo, in its order.
_COMMON_KEYS = ("epoch_num", "step_num", "global_step", "loss_scale", "global_batch_size", "ckpt_status")


@dataclass(frozen=True, slots=True)
class RankFile:
    """A weights file of an iteration.

    Attributes:
        name: Its name.
        rank: The rank whose slices it holds.
        slices: They, in order.
    """

    name: str
    rank: int
    slices: tuple[RankSlice, ...]


@dataclass(frozen=True, slots=True)
class IterationLayout:
    """What goes into an iteration's folder.

    Attributes:
        files: The safetensors files; a rank has one of each kind that it has slices of.
        metadata: The content of `metadata.json`.
    """

    files: tuple[RankFile, ...]
    metadata: bytes


def layout_iteration(
    ranks: Sequence[Sequence[RankSlice]], prefix: str | None = None, keep_replicas: bool = False
) -> IterationLayout:
    """The files of an iteration, and its `metadata.json`.

    Args:
        ranks: The slices of each rank.
        prefix: What to put before the names of the files.
        keep_replicas: Write a slice that several ranks have once for each of them, not once in all. `metadata.json`
            then grows with the square of the ranks: for each of them it names all that have the slice.

    Raises:
        MismatchError: The ranks disagree about a tensor, do not cover it exactly once but for replicas, or cut it into
            unequal parts; or MindSpore has no such type.
        UsageError: The prefix is no part of a file name.
    """
    if prefix is not None and (not prefix or "/" in prefix or "\0" in prefix):
        raise UsageError(Problem("the prefix of the files", repr(prefix), "a part of a file name"))
    tensors = gather_slices(ranks)
    files = _files(tensors, ranks, prefix, keep_replicas)
    return IterationLayout(files, _metadata_json(tensors, files))


def common_json(common: Mapping[str, object]) -> bytes:
    """The content of `common.json`: MindFormers' counters, null where nothing is known, then whatever else there is."""
    counters = {key: common.get(key) for key in _COMMON_KEYS}
    return json.dumps({**counters, **common}, ensure_ascii=False, indent=4).encode("utf-8")


def tracker_text(number: int) -> bytes:
    """The content of `latest_checkpointed_iteration.txt`."""
    return str(number).encode("ascii")


def _files(
    tensors: Mapping[str, SlicedTensor], ranks: Sequence[Sequence[RankSlice]], prefix: str | None, keep_replicas: bool
) -> tuple[RankFile, ...]:
    if keep_replicas:
        return tuple(
            RankFile(str(WeightsFileName(kind, rank, len(ranks), prefix)), rank, tuple(slices))
            for rank, group in enumerate(ranks)
            for kind in (MODEL, OPTIMIZER)
            if (slices := [one for one in group if one.kind == kind])
        )
    kept = _without_replicas(tensors, ranks)
    files = []
    for kind in (MODEL, OPTIMIZER):
        holding = [rank for rank, group in enumerate(kept) if any(one.kind == kind for one in group)]
        for index, rank in enumerate(holding):
            name = str(WeightsFileName(kind, index, len(holding), prefix))
            files.append(RankFile(name, rank, tuple(one for one in kept[rank] if one.kind == kind)))
    return tuple(files)


def _without_replicas(
    tensors: Mapping[str, SlicedTensor], ranks: Sequence[Sequence[RankSlice]]
) -> list[list[RankSlice]]:
    """Each slice on one of the ranks that have it, so that all ranks get about as many bytes.

    Slices with the least choice go first, of those the largest; each goes to the rank that has the fewest bytes.
    """
    cells = [
        (len(holders), -tensor.cell_bytes, name, cell)
        for name, tensor in tensors.items()
        for cell, holders in tensor.holders.items()
    ]
    loads = [0] * len(ranks)
    owners: dict[tuple[str, int], int] = {}
    for _, negative_bytes, name, cell in sorted(cells):
        owner = min(tensors[name].holders[cell], key=loads.__getitem__)
        owners[name, cell] = owner
        loads[owner] -= negative_bytes
    return [
        [one for one in group if owners[one.name, tensors[one.name].cells[one.region]] == rank]
        for rank, group in enumerate(ranks)
    ]


def _metadata_json(tensors: Mapping[str, SlicedTensor], files: Iterable[RankFile]) -> bytes:
    """The document, in each of its halves a line a tensor."""
    stored: dict[str, dict[int, list[object]]] = {name: {} for name in tensors}
    for file in files:
        for one in file.slices:
            tensor = tensors[one.name]
            cell = tensor.cells[one.region]
            entry = {"file_name": file.name, "storage_rank": file.rank, "rank_group": tensor.holders[cell]}
            stored[one.name].setdefault(cell, []).append(entry)
    described = (_members({name: _describe(tensor)}) for name, tensor in tensors.items())
    held = (_members({repr((name, (cell,))): by_cell[cell] for cell in by_cell}) for name, by_cell in stored.items())
    halves = {"state_dict_metadata": described, "storage_data": held}
    text = ",\n".join(f'"{key}": {{\n' + ",\n".join(lines) + "\n}" for key, lines in halves.items())
    return f"{{\n{text}\n}}\n".encode()


def _describe(tensor: SlicedTensor) -> dict[str, object]:
    local_shape = tensor.cell_shape
    layout = tensor.layout
    return {
        "properties": {
            "dtype": tensor.dtype.mindspore,
            "replica_id": tensor.replica_ids,
            "allow_shape_mismatch": False,
            "allow_to_save": True,
        },
        "global_shape": tensor.shape,
        "axis_fragmentations": tensor.parts,
        # MindFormers takes the values of this object by their order.
        "layout": {
            "device_matrix": layout.device_matrix,
            "tensor_map": [cuts[0] if cuts else -1 for cuts in layout.tensor_map],
            "interleaved_parallel": False,
            "alias_name": [f"axis{index}" for index in range(len(layout.device_matrix))],
            "rank_list": layout.rank_list,
        },
        "chunk": [{"global_offset": (cell,), "local_shape": local_shape} for cell in tensor.holders],
    }


def _members(members: Mapping[str, object]) -> str:
    """The members of a JSON object, without its braces."""
    return json.dumps(members, ensure_ascii=False)[1:-1]
