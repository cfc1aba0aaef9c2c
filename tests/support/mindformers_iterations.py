"""Iterations of Checkpoint 2.0 by MindFormers' own functions, with one process that plays the ranks in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindformers.checkpoint import checkpoint as mf_checkpoint
from mindformers.checkpoint import fully_parallel, metadata, reshard, sharded_tensor
from mindspore import Parameter, Tensor, nn
from mindspore.parallel import Layout

from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.lazy import Region

ODD_NAME = """it's ("é", (0,)).b"""
WEIGHTS: dict[str, np.ndarray] = {
    "cut.both": np.arange(32, dtype=np.float32).reshape(4, 8),
    "cut.nested": np.arange(16, dtype=np.float32).reshape(8, 2),
    "cut.last": np.arange(12, dtype=np.float16).reshape(3, 4),
    ODD_NAME: np.arange(6, dtype=np.float32),
}
PLACED = Layout((2, 2), ("dp", "mp"))
LAYOUTS: dict[str, Layout] = {
    "cut.both": PLACED("dp", "mp"),
    "cut.nested": PLACED(("mp", "dp"), "None"),
    "cut.last": PLACED("None", "mp"),
    ODD_NAME: PLACED("None"),
}
RANKS = 4

Play = Callable[[int, int], None]


class Network(nn.Cell):
    """Parameters, and nothing else."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        for index, (name, array) in enumerate(arrays.items()):
            tensor = Tensor(np.array(array, np.float32 if dtype_of(array).name == "bf16" else array.dtype))
            as_stored = tensor.astype(mindspore.bfloat16) if dtype_of(array).name == "bf16" else tensor
            setattr(self, f"p{index}", Parameter(as_stored, name=name))


def player(monkeypatch: pytest.MonkeyPatch) -> Play:
    """What tells MindFormers which of how many ranks it is."""

    def as_rank(rank: int, ranks: int) -> None:
        for module in (mf_checkpoint, fully_parallel, reshard, sharded_tensor):
            monkeypatch.setattr(module, "get_real_rank", lambda: rank)
        for module in (mf_checkpoint, sharded_tensor):
            monkeypatch.setattr(module, "get_real_group_size", lambda: ranks)
        monkeypatch.setattr(metadata, "get_group_size", lambda: ranks)

    return as_rank


def region_of(layout: Layout, rank: int, shape: tuple[int, ...]) -> Region:
    """What a rank holds, as MindFormers works it out."""
    facts = layout.to_dict()
    return reshard.infer_slice_area_by_rank(facts["device_matrix"], facts["tensor_map"], rank, shape)


def cut(array: np.ndarray, region: Region) -> np.ndarray:
    return array[tuple(slice(*axis) for axis in region)]


def strategy(ranks: int, layouts: Mapping[str, Layout], arrays: Mapping[str, np.ndarray]) -> dict[int, dict[str, Any]]:
    """What MindSpore would say of a compiled network: layout, type and whole shape of each parameter of each rank."""
    types = {name: dtype_of(array).mindspore for name, array in arrays.items()}
    of_rank = {name: [layout, types[name], list(arrays[name].shape)] for name, layout in layouts.items()}
    return dict.fromkeys(range(ranks), of_rank)


def saved_arrays(remove_redundancy: bool) -> dict[str, np.ndarray]:
    """WEIGHTS and Adam's states of them; MindFormers cannot leave replicas out where a name holds a comma."""
    weights = {name: array for name, array in WEIGHTS.items() if not (remove_redundancy and "," in name)}
    return weights | {f"adam_{which}.{name}": array for which in "mv" for name, array in weights.items()}


def saved_layouts(arrays: Mapping[str, np.ndarray]) -> dict[str, Layout]:
    return {name: LAYOUTS[name.removeprefix("adam_m.").removeprefix("adam_v.")] for name in arrays}


def save(folder: Path, play: Play, monkeypatch: pytest.MonkeyPatch, remove_redundancy: bool = False) -> None:
    """Four ranks save their slices with MindFormers' own functions."""
    arrays = saved_arrays(remove_redundancy)
    layouts = saved_layouts(arrays)
    infos = strategy(RANKS, layouts, arrays)
    # Only a distributed run compiles the network, and a barrier would wait for other processes.
    monkeypatch.setattr(sharded_tensor, "get_strategy_metadata", lambda network: infos)
    monkeypatch.setattr(mf_checkpoint, "barrier_world", lambda *_: None)
    for rank in range(RANKS):
        play(rank, RANKS)
        slices = {name: cut(array, region_of(layouts[name], rank, array.shape)) for name, array in arrays.items()}
        network = Network({name: array for name, array in slices.items() if not name.startswith("adam")})
        optimizer = nn.AdamWeightDecay(network.trainable_params())
        for name, parameter in optimizer.parameters_dict().items():
            if name.startswith("adam"):
                parameter.set_data(Tensor(np.array(slices[name])))
        mf_checkpoint.save_checkpoint(
            12,
            network,
            optimizer,
            common_info=mf_checkpoint.CommonInfo(epoch_num=1, step_num=12, global_step=12, global_batch_size=8),
            user_prefix="llama",
            save_checkpoint_path=str(folder),
            sharded_tensor_metas=sharded_tensor.get_all_sharded_tensor(network),
            remove_redundancy=remove_redundancy,
        )


def reshard_of(folder: Path, layouts: Mapping[str, Layout], rank: int, ranks: int) -> dict[str, Parameter]:
    """What a rank of another layout loads of WEIGHTS, by MindFormers' own reshard."""
    wanted = sharded_tensor.get_sharded_tensor_from_strategy_metadata(strategy(ranks, layouts, WEIGHTS)[rank], rank)
    metas, files = metadata.get_metadata_of_checkpoint(str(folder))
    loaded: dict[str, Parameter] = reshard.ReshardLoader(str(folder), wanted, metas, files).load()
    return loaded
