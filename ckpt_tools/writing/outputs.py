"""From output tensors to output files: format, shards, index, metadata and what is carried along."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tools.formats import Checkpoint, index_json, index_name, plan_shards, weights_name
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.tensors.sources import open_source
from ckpt_tools.writing.manifest import MANIFEST_KEY
from ckpt_tools.writing.plan import Entry, OutputBytes, OutputCopy, OutputFile, Plan
from surgery.documents import read_json
from surgery.errors import Problem, UsageError

__all__ = ["Changes", "OutputOptions", "carried_metadata", "default_output", "plan_output"]

_SUFFIXES = {".ckpt": "ckpt", ".safetensors": "safetensors"}

# Suffixes that announce a format which is not written; any other is part of a folder's name.
_FOREIGN_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".gguf", ".npz", ".npy", ".h5", ".onnx", ".msgpack", ".mindir"}

_DEFAULT_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What the user wants the output to be.

    Attributes:
        path: Where it goes; its suffix, where it has one, chooses the format.
        format: `keep`, `ckpt` or `safetensors`.
        max_shard_bytes: The largest shard of a folder; None keeps the base's shards.
    """

    path: Path
    format: str = "keep"
    max_shard_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What an operation changed of the base, as far as other files of the folder speak of it.

    Attributes:
        metadata: Entries added to the metadata.
        config: Entries to set in `config.json`.
        renamed: Output name to the base's name, where they differ.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


def default_output(base: Checkpoint, format: str, word: str) -> Path:
    """`./<stem of BASE>-<word>` with the extension that the format asks for, or a folder where BASE is one."""
    if base.is_folder:
        return Path(f"{base.path.resolve().name}-{word}")
    suffix = base.path.suffix if format == "keep" else f".{format}"
    return Path(f"{base.path.stem}-{word}{suffix if suffix in _SUFFIXES else '.' + base.format}")


def plan_output(base: Checkpoint, tensors: Sequence[NamedTensor], options: OutputOptions, changes: Changes) -> Plan:
    """Lay an output out.

    Args:
        base: What the output descends from: its format and shards are kept where the options say nothing.
        tensors: What is written, in order.
        options: What the user wants.
        changes: What else has to be told.

    Raises:
        UsageError: Options contradict each other.
        MismatchError: A tensor is of a type that the format cannot hold.
    """
    suffix = options.path.suffix.lower()
    if suffix in _FOREIGN_SUFFIXES:
        known = " or ".join(_SUFFIXES)
        raise UsageError(Problem(f"-o {options.path}", f"suffix {suffix}", f"{known}, or a folder without a suffix"))
    named = _SUFFIXES.get(suffix)
    if named and options.format not in ("keep", named):
        raise UsageError(
            Problem("--format", options.format, f"{named}, as in {options.path.name}", "Leave one of the two out")
        )
    format = named or (base.format if options.format == "keep" else options.format)
    metadata = _metadata(base, format, changes)
    crc = bool(base.crc) and format == "ckpt"
    if named:
        if options.max_shard_bytes is not None:
            found = f"the single file {options.path.name}"
            raise UsageError(Problem("--max-shard-size", found, "a folder", "Give -o without a suffix"))
        return Plan(options.path, False, (OutputFile(options.path.name, format, tuple(tensors), metadata, crc),))
    shards = _shards(base, tensors, format, options, changes)
    entries: list[Entry] = [OutputFile(name, format, tuple(part), metadata, crc) for name, part in shards]
    if base.is_folder:
        entries += _companions(base, changes)
    extension = f".{format}"
    if [name for name, _ in shards] != [weights_name(extension)]:
        entries.append(OutputBytes(index_name(extension), index_json(shards, carried_metadata(base.metadata))))
    return Plan(options.path, True, tuple(entries))


def carried_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What of a checkpoint's metadata holds for what is made of it: not what speaks of its own bytes."""
    return {key: value for key, value in metadata.items() if key not in ("total_size", MANIFEST_KEY)}


def _metadata(base: Checkpoint, format: str, changes: Changes) -> dict[str, str]:
    if format == "ckpt":
        return {}
    kept = carried_metadata(base.metadata)
    # MindSpore writes "ms", Hugging Face "pt"; transformers refuses files that say neither.
    default = "pt" if base.format == "safetensors" else "ms"
    return {"format": default, **kept, **changes.metadata}


def _shards(
    base: Checkpoint, tensors: Sequence[NamedTensor], format: str, options: OutputOptions, changes: Changes
) -> list[tuple[str, list[NamedTensor]]]:
    if options.max_shard_bytes is not None or not base.is_folder or not base.shards or format != base.format:
        return plan_shards(tensors, options.max_shard_bytes or _DEFAULT_SHARD_BYTES, f".{format}")
    shards: dict[str, list[NamedTensor]] = {name: [] for name in dict.fromkeys(base.shards.values())}
    last = next(reversed(shards))
    for name, tensor in tensors:
        shards[base.shards.get(changes.renamed.get(name, name), last)].append((name, tensor))
    return [(name, part) for name, part in shards.items() if part]


def _companions(base: Checkpoint, changes: Changes) -> list[Entry]:
    entries: list[Entry] = []
    for companion in base.companions:
        source = open_source(base.path / companion)
        if companion.name == "config.json" and changes.config:
            config = read_json(base.path / companion)
            text = json.dumps({**config, **changes.config}, indent=2, ensure_ascii=False)
            entries.append(OutputBytes(str(companion), text.encode() + b"\n"))
        else:
            entries.append(OutputCopy(str(companion), source))
    return entries
