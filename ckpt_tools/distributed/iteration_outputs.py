"""From whole tensors to an iteration of MindFormers' Checkpoint 2.0.

    OUTPUT/iteration_00000120/[PREFIX-]model-0000000-0000008.safetensors     weights
    OUTPUT/iteration_00000120/[PREFIX-]opt-0000000-0000008.safetensors       optimizer states and training scalars
    OUTPUT/iteration_00000120/common.json                                    counters of the training
    OUTPUT/iteration_00000120/metadata.json                                  which slice is where
    OUTPUT/latest_checkpointed_iteration.txt                                 120

A slice that several ranks have is written once, by one of them, as MindFormers does it with `remove_redundancy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ckpt_tools.distributed.opening import Opened
from ckpt_tools.distributed.rank_outputs import RANK_PREFIX
from ckpt_tools.distributed.scattering import Scattered
from ckpt_tools.formats import (
    COMMON_FILE,
    METADATA_FILE,
    MODEL,
    OPTIMIZER,
    TRACKER_FILE,
    RankSlice,
    common_json,
    iteration_folder_name,
    layout_iteration,
    tracker_text,
)
from ckpt_tools.formats.iteration.join import kind_of
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.lazy import LazyTensor, full_region
from ckpt_tools.tensors.views import Sliced
from ckpt_tools.writing.outputs import Changes, OutputOptions, carried_metadata
from ckpt_tools.writing.plan import Entry, OutputBytes, OutputFile, Plan
from surgery.errors import Problem, UsageError
from surgery.states import is_training_scalar, split_optimizer_state

__all__ = ["IterationFacts", "iteration_facts", "plan_iteration"]

_FILES = (".ckpt", ".safetensors")
_COUNTERS = ("epoch_num", "step_num", "global_step", "global_batch_size")
_MAX_NUMBER = 10**18  # what a folder's name can say


@dataclass(frozen=True, slots=True)
class IterationFacts:
    """What an iteration says beside its tensors.

    Attributes:
        number: Its number.
        common: What `common.json` says: counters of the training.
        kinds: Name in the source to `MODEL` or `OPTIMIZER`.
        prefix: What the files' names begin with; None for nothing.
        metadata: Strings beside the tensors.
    """

    number: int
    common: Mapping[str, object]
    kinds: Mapping[str, str]
    prefix: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def iteration_facts(source: Opened) -> IterationFacts:
    """What an iteration that is made of a source is to say; training scalars of the source are read.

    Its number is the source's, if that is an iteration. Else it is `step_num` or `global_step`, the first of these that
    `common.json` or a tensor says, since MindFormers counts iterations as `step_num`. Where nobody says it, it is 0,
    and so are the counters: training has not begun.
    """
    base, iteration = source.base, source.iteration
    common = dict(iteration.common) if iteration is not None else {}
    number = iteration.number if iteration is not None else None
    if not common:
        common = _counters(base.tensors)
        if "epoch_num" not in common and "_" in source.step:
            common["epoch_num"] = int(source.step.partition("_")[0])
    if number is None:
        said = (common.get(key) for key in ("step_num", "global_step"))
        number = next((one for one in said if isinstance(one, int) and 0 <= one < _MAX_NUMBER), None)
    if number is None:
        number = 0
        common = {"epoch_num": 0, **common}
    # The loader of MindFormers 1.9 fails on a null in their place.
    common = {**common, **{key: number for key in ("step_num", "global_step") if common.get(key) is None}}
    kinds = {name: _kind(name, base.tensors) for name in base.tensors}
    prefix = None
    if iteration is not None:
        said_kinds = {name: tensor.kind for name, tensor in iteration.tensors.items()}
        said_kinds |= {name: kind_of(chunks[0].file) for name, chunks in iteration.unlisted.items()}
        kinds |= {name: kind for name, kind in said_kinds.items() if kind}
        prefix = iteration.prefix
    metadata = {key: value for key, value in carried_metadata(base.metadata).items() if key != "remove_redundancy"}
    return IterationFacts(number, common, kinds, prefix, {**metadata, "format": "ms"})


def plan_iteration(
    facts: IterationFacts,
    tensors: Mapping[str, LazyTensor],
    scattered: Scattered | None,
    options: OutputOptions,
    prefix: str,
    changes: Changes,
) -> Plan:
    """Lay an iteration out.

    Args:
        facts: What it says beside the tensors.
        tensors: The whole tensors.
        scattered: What the ranks hold of them; None for one rank that holds them whole.
        options: What the user wants.
        prefix: What the files' names begin with; `RANK_PREFIX` stands for the source's.
        changes: What else has to be told.

    Raises:
        UsageError: Options contradict each other.
        MismatchError: A tensor is cut into unequal parts, or of a type that MindSpore lacks.
    """
    if options.path.suffix.lower() in _FILES:
        found, expected = "the name of a file", "a folder for the iteration"
        raise UsageError(Problem(f"-o {options.path}", found, expected, "Choose a name without this suffix"))
    if options.max_shard_bytes is not None:
        found, expected = "with --format iteration", "a checkpoint in shards"
        raise UsageError(Problem("--max-shard-size", found, expected, "Leave one of them out"))
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise UsageError(Problem("--prefix", repr(prefix), "the beginning of a file's name"))
    known = facts.kinds
    kinds = {name: known.get(changes.renamed.get(name, name), MODEL) for name in tensors}
    ranks = 1 if scattered is None else scattered.strategy.ranks
    slices = [list(_slices(rank, tensors, scattered, kinds)) for rank in range(ranks)]
    layout = layout_iteration(slices, facts.prefix if prefix == RANK_PREFIX else prefix)
    folder = iteration_folder_name(facts.number)
    strings = {**facts.metadata, **changes.metadata}
    entries: list[Entry] = [
        OutputFile(
            f"{folder}/{file.name}",
            "safetensors",
            tuple(_cut(one, tensors) for one in file.slices),
            strings,
            rank=file.rank,
        )
        for file in layout.files
    ]
    entries.append(OutputBytes(f"{folder}/{COMMON_FILE}", common_json(facts.common)))
    entries.append(OutputBytes(f"{folder}/{METADATA_FILE}", layout.metadata))
    entries.append(OutputBytes(TRACKER_FILE, tracker_text(facts.number)))
    return Plan(options.path, True, tuple(entries))


def _slices(
    rank: int, tensors: Mapping[str, LazyTensor], scattered: Scattered | None, kinds: Mapping[str, str]
) -> Iterator[RankSlice]:
    """What a rank holds, in the order of the whole tensors."""
    held = scattered.stages[scattered.strategy.stage_of(rank)] if scattered is not None else None
    for name, tensor in tensors.items():
        if held is not None and name not in held:
            continue
        region = held[name][rank % scattered.strategy.stage_devices] if held is not None and scattered else None
        yield RankSlice(name, tensor.dtype, tensor.shape, region or full_region(tensor.shape), kinds[name])


def _cut(one: RankSlice, tensors: Mapping[str, LazyTensor]) -> NamedTensor:
    tensor = tensors[one.name]
    return one.name, tensor if one.region == full_region(tensor.shape) else Sliced(tensor, one.region)


def _kind(name: str, names: Mapping[str, LazyTensor]) -> str:
    """MindFormers puts what is no parameter of the network, as training scalars are not, to the optimizer's states."""
    return OPTIMIZER if is_training_scalar(name) or split_optimizer_state(name, names) else MODEL


def _counters(tensors: Mapping[str, LazyTensor]) -> dict[str, object]:
    """What training scalars say of the training."""
    counters: dict[str, object] = {}
    for name in (*_COUNTERS, "loss_scale"):
        tensor = tensors.get(name)
        if tensor is None or tensor.size != 1:
            continue
        value = float(tensor.read_all().reshape(-1)[0])
        if math.isfinite(value):
            counters[name] = value if name == "loss_scale" else int(value)
    return counters
