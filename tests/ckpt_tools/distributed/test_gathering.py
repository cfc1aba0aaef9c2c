"""What headers of ranks' files are put together to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from merge_cases import random
from rank_folders import strategy_of, write_ranks
from transform_cases import SOURCE, TENSORS, write_case

from ckpt_tools.distributed import Gathered, compare_replicas, gather, open_whole
from ckpt_tools.formats.ranks import read_rank_folder
from ckpt_tools.layout import read_strategy
from ckpt_tools.layout.model import Layout
from ckpt_tools.progress import SILENT


def gathered(folder: Path) -> Gathered:
    write_case(folder)
    return gather(read_rank_folder(folder / "in"), read_strategy(folder / "src.ckpt"))


def test_tensors_are_whole_and_in_the_order_of_the_files(tmp_path: Path) -> None:
    whole = gathered(tmp_path)
    assert list(whole.tensors) == list(TENSORS)
    for name, array in TENSORS.items():
        assert whole.tensors[name].read_all().tobytes() == np.ascontiguousarray(array).tobytes()
    assert whole.parts == {"embedding.weight": (2, 1), "layer.weight": (1, 2), "norm.weight": (1,), "global_step": ()}
    assert whole.unlisted == {"global_step"}
    assert (whole.left_out, whole.absent, whole.warnings) == ((), (), ())


def test_each_element_comes_from_one_file_and_its_copies_are_known(tmp_path: Path) -> None:
    whole = gathered(tmp_path)
    for name, array in TENSORS.items():
        runs = list(whole.tensors[name].sources())
        assert sum(run.length for run in runs) == array.nbytes
        assert len({(run.source.path, run.offset) for run in runs}) == len(runs)
    copies = {(replica.name, replica.kept_from, replica.other_from) for replica in whole.replicas}
    assert {entry for entry in copies if entry[0] == "embedding.weight"} == {
        ("embedding.weight", "rank 0", "rank 2"),
        ("embedding.weight", "rank 1", "rank 3"),
    }
    assert len([entry for entry in copies if entry[0] == "norm.weight"]) == 3
    assert compare_replicas(whole.replicas, SILENT) == []


def test_a_tensor_of_two_stages_is_gathered_once(tmp_path: Path) -> None:
    tied = {"w": random(0, 4, 4)}
    strategy = strategy_of({"w": Layout((2,), ((0,), ()))}, {"w": Layout((2,), ((), (0,)))})
    whole = gather(read_rank_folder(write_ranks(tmp_path, tied, strategy)), strategy)
    assert list(whole.tensors) == ["w"]
    assert whole.parts["w"] == (2, 1)
    (replica,) = whole.replicas
    assert replica.other.read_all().tobytes() == tied["w"].tobytes()
    assert compare_replicas([replica], SILENT) == []


def test_an_opened_folder_of_ranks_is_a_checkpoint_of_whole_tensors(tmp_path: Path) -> None:
    write_case(tmp_path, ".safetensors")
    opened = open_whole(tmp_path / "in", SOURCE)
    assert (opened.ranks, opened.step) == (4, "3_2")
    assert (opened.base.format, opened.base.is_folder) == ("safetensors", True)
    assert {name: tensor.shape for name, tensor in opened.base.tensors.items()} == {
        name: array.shape for name, array in TENSORS.items()
    }
    assert len(opened.base.sources) == 4
