"""Whole tensors of the slices that ranks hold, and slices for ranks of whole tensors; no bytes are moved."""

from ckpt_tools.distributed.gathering import Gathered, gather
from ckpt_tools.distributed.iteration_outputs import IterationFacts, iteration_facts, plan_iteration
from ckpt_tools.distributed.iteration_sources import gather_iteration
from ckpt_tools.distributed.opening import Opened, open_whole
from ckpt_tools.distributed.rank_outputs import RANK_PREFIX, plan_ranks
from ckpt_tools.distributed.replicas import compare_replicas, compare_unlisted, sample_replicas
from ckpt_tools.distributed.scattering import Scattered, scatter

__all__ = [
    "RANK_PREFIX",
    "Gathered",
    "IterationFacts",
    "Opened",
    "Scattered",
    "compare_replicas",
    "compare_unlisted",
    "gather",
    "gather_iteration",
    "iteration_facts",
    "open_whole",
    "plan_iteration",
    "plan_ranks",
    "sample_replicas",
    "scatter",
]
