"""From the tensors of a changed network to a plan: whole, for ranks, or as Checkpoint 2.0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tools.distributed import Gathered, Opened, Scattered, iteration_facts, plan_iteration, plan_ranks, scatter
from ckpt_tools.injecting.layouts import AddedTo, covering, with_added
from ckpt_tools.layout import Strategy
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.writing.destination import destination
from ckpt_tools.writing.outputs import Changes, OutputOptions, default_output, plan_output
from ckpt_tools.writing.plan import Plan

__all__ = ["Wanted", "injected_output", "plan_injected", "scatter_injected"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants of the output.

    Attributes:
        path: Where it goes; None for the default.
        format: `keep`, `ckpt`, `safetensors` or `iteration`.
        max_shard_bytes: The largest shard of a folder; None keeps the base's.
        prefix: What the names of ranks' files begin with.
        only_delta: Whether the base is left out.
    """

    path: Path | None
    format: str
    max_shard_bytes: int | None
    prefix: str
    only_delta: bool


def injected_output(opened: Opened, wanted: Wanted, target: Strategy | None) -> Path:
    """Where the output goes: where the user says, or into the working folder under the base's name."""
    if wanted.path is not None:
        return destination(wanted.path)
    word = "delta" if wanted.only_delta else "injected"
    if (target is not None or wanted.format == "iteration") and not opened.base.is_folder:
        return Path(f"{opened.base.path.stem}-{word}")
    return default_output(opened.base, wanted.format, word)


def scatter_injected(
    target: Strategy,
    tensors: Mapping[str, LazyTensor],
    added: tuple[AddedTo, ...],
    weights: Mapping[str, LazyTensor],
    unlisted: frozenset[str],
    may_miss: Callable[[str], bool],
) -> tuple[Scattered, Strategy]:
    """Cut an output for ranks.

    Args:
        target: How the base is to be cut.
        tensors: The output's whole tensors.
        added: The new parameters.
        weights: The base's weights.
        unlisted: Names that the source's strategy lacks since every rank holds all of them.
        may_miss: Whether a parameter of the target that the output lacks may be missing.

    Returns:
        What the ranks hold, and a strategy with all of it.

    Raises:
        MismatchError: Tensors and strategy do not fit together; all problems at once.
    """
    extended = with_added(target, added, weights)
    parts = {name: (1,) * len(tensor.shape) for name, tensor in tensors.items()}
    scattered = scatter(Gathered(tensors, parts, unlisted), extended, may_miss=may_miss)
    return scattered, covering(extended, scattered.stages, tensors)


def plan_injected(
    opened: Opened,
    tensors: Mapping[str, LazyTensor],
    scattered: Scattered | None,
    path: Path,
    wanted: Wanted,
    changes: Changes,
) -> Plan:
    """Lay an output out.

    Raises:
        UsageError: Options contradict each other.
        MismatchError: A tensor is of a type that the format cannot hold.
    """
    options = OutputOptions(path, wanted.format, wanted.max_shard_bytes)
    base = opened.base
    if wanted.only_delta:  # it is no copy of the base's folder, and has no shards in common with it
        base = replace(base, is_folder=False, shards={}, companions=())
    if wanted.format == "iteration":
        return plan_iteration(iteration_facts(opened), tensors, scattered, options, wanted.prefix, changes)
    if scattered is None:
        return plan_output(base, list(tensors.items()), options, changes)
    return plan_ranks(base, tensors, scattered, options, wanted.prefix, changes.metadata)
