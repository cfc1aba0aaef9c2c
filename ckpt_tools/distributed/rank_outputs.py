"""From whole tensors to the files of ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_tools.distributed.scattering import Scattered
from ckpt_tools.formats import Checkpoint
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.writing.outputs import OutputOptions, carried_metadata
from ckpt_tools.writing.plan import OutputFile, Plan
from surgery.errors import Problem, UsageError

__all__ = ["RANK_PREFIX", "plan_ranks"]

RANK_PREFIX = "checkpoint_"
"""What MindSpore's own tools name the files of ranks with."""

_FILES = (".ckpt", ".safetensors")

# `NAME-EPOCH_STEP` are the names of files that training saves.
_STEP = re.compile(r"-\d+_$")


def plan_ranks(
    base: Checkpoint,
    tensors: Mapping[str, LazyTensor],
    scattered: Scattered,
    options: OutputOptions,
    prefix: str,
    metadata: Mapping[str, str],
) -> Plan:
    """Lay the files of all ranks out: `OUTPUT/rank_N/<prefix>N.<format>`.

    Args:
        base: What the output descends from: its format and metadata are kept where the options say nothing.
        tensors: The whole tensors.
        scattered: What the ranks hold of them.
        options: What the user wants.
        prefix: What the files' names begin with.
        metadata: Entries added to the metadata.

    Raises:
        UsageError: Options contradict each other.
        MismatchError: A tensor is of a type that the format cannot hold.
    """
    if options.path.suffix.lower() in _FILES:
        found, expected = "the name of a file", "a folder for rank_0, rank_1, ..."
        raise UsageError(Problem(f"-o {options.path}", found, expected, "Choose the format with --format"))
    if options.max_shard_bytes is not None:
        raise UsageError(Problem("--max-shard-size", "with --dst-strategy", "a whole output", "Leave one of them out"))
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise UsageError(Problem("--prefix", repr(prefix), "the beginning of a file's name"))
    if _STEP.search(prefix):
        found = f"{prefix!r}, behind which the rank would be read as a step"
        raise UsageError(Problem("--prefix", found, "one that does not end as -9_"))
    format = base.format if options.format == "keep" else options.format
    strings = {"format": "ms", **carried_metadata(base.metadata), **metadata} if format == "safetensors" else {}
    crc = bool(base.crc) and format == "ckpt"
    files = []
    for rank in range(scattered.strategy.ranks):
        held = tuple(scattered.tensors(rank, tensors))
        files.append(OutputFile(f"rank_{rank}/{prefix}{rank}.{format}", format, held, strings, crc, rank))
    return Plan(options.path, True, tuple(files))
