"""Thousands of random layouts, gathered and scattered in memory, against the definition of what each rank holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from rank_folders import assert_same_arrays, slices_of_rank
from soak import examples
from transform_cases import Held, twice_cut

from ckpt_tools.distributed import gather, scatter
from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.ranks import RankFolder
from ckpt_tools.layout.model import Strategy
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant


def held_by_ranks(tensors: Held, strategy: Strategy) -> RankFolder:
    """Ranks whose files are in memory."""
    ranks = []
    for rank in range(strategy.ranks):
        held = slices_of_rank(tensors, strategy, rank)
        lazy = {name: Constant(np.ascontiguousarray(array), dtype_of(array)) for name, array in held.items()}
        ranks.append(Checkpoint(Path(f"rank_{rank}"), "ckpt", is_folder=False, tensors=lazy))
    return RankFolder(Path("in"), "", tuple(ranks))


@settings(max_examples=examples(1000), deadline=None)
@given(case=twice_cut())
def test_every_rank_of_the_target_gets_its_slices(case: tuple[Held, Strategy, Strategy]) -> None:
    tensors, before, after = case
    whole = gather(held_by_ranks(tensors, before), before)
    assert_same_arrays({name: tensor.read_all() for name, tensor in whole.tensors.items()}, tensors)
    for replica in whole.replicas:
        assert replica.kept.read_all().tobytes() == replica.other.read_all().tobytes()
    scattered = scatter(whole, after)
    for rank in range(after.ranks):
        held = {name: tensor.read_all() for name, tensor in scattered.tensors(rank, whole.tensors)}
        assert_same_arrays(held, slices_of_rank(tensors, after, rank))
