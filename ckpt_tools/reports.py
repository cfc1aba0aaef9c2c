"""What an operation did, for people and for programs: frozen dataclasses that become one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "AdapterReport",
    "AdapterUse",
    "AddedParameter",
    "DroppedTensor",
    "ExtractedLayer",
    "FoldedWeight",
    "InjectReport",
    "MergeReport",
    "NearMiss",
    "SplitParameter",
    "SplitReport",
    "TransformReport",
    "TransformedTensor",
]


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """One adapter that went in.

    Attributes:
        path: What the user gave.
        digest: BLAKE3 over the content of its tensors, as `ckpt_tools.fingerprint.content_digest` defines it.
        config: The file that the scale was read from; empty where it came from the command line.
        families: How its parameters are spelled.
        names: What was done to its names to find the base's; empty where they are spelled alike.
    """

    path: str
    digest: str
    config: str
    families: tuple[str, ...]
    names: str = ""


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One adapter's part in one weight.

    Attributes:
        adapter: Its path.
        keys: Its tensors that went into the weight.
        kind: `linear`, `embedding`, `conv`, `expert`, `bias` or `replaced`.
        rank: LoRA's rank; None where there is none.
        alpha: LoRA's alpha; None where the scale itself was given.
        scaling: The factor in front of B @ A; None where the weight was replaced.
        dora: Whether the weight was renormalised by a DoRA magnitude.
    """

    adapter: str
    keys: tuple[str, ...]
    kind: str
    rank: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    dora: bool = False


@dataclass(frozen=True, slots=True)
class FoldedWeight:
    """One weight of the output that is not the base's.

    Attributes:
        name: Its name in the output.
        base_name: Its name in the base.
        shape: Its shape.
        dtype: Its element type in the output.
        adapters: What went in.
        weight_norm: Frobenius norm of the weight before; None in a dry run and for replaced weights.
        delta_norm: Frobenius norm of what was added.
        relative_delta: delta_norm / weight_norm.
        unchanged_share: Share of the elements, 0 to 1, whose stored bits the rounding left as they were.
    """

    name: str
    base_name: str
    shape: tuple[int, ...]
    dtype: str
    adapters: tuple[AdapterUse, ...]
    weight_norm: float | None = None
    delta_norm: float | None = None
    relative_delta: float | None = None
    unchanged_share: float | None = None


@dataclass(frozen=True, slots=True)
class DroppedTensor:
    """A tensor of an input that is not in the output, and why."""

    name: str
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What `merge` did, or in a dry run would do.

    Attributes:
        output: Where the output lies.
        dry_run: Whether nothing was written.
        base: The base's path.
        base_fingerprint: As `ckpt_tools.fingerprint.fingerprint` defines it.
        adapters: The adapters that went in.
        format: `ckpt` or `safetensors`.
        files: Names of the output's files; a single one is the output itself.
        weights: Every weight that is not the base's.
        copied: Names in the output of tensors with the base's bytes.
        cast: Names in the output of tensors that were only cast to another type.
        dropped: Tensors of the inputs that are not in the output.
        warnings: What the user ought to know, a sentence each.
        bytes_read: Bytes of the inputs that are read for the output.
        bytes_written: Bytes of the output.
        peak_memory_bytes: The anonymous memory that is expected at most.
        free_disk_bytes: Room at the output's place before writing.
        seconds: Wall-clock time.
        resumed: Files that a killed run of the same plan, or runs of `ranks`, had completed.
        ranks: The ranks whose files were written, as `0-63`, where the output is left to other runs; else None. Then
            `files`, `bytes_read` and `bytes_written` are of these alone.
        version: This tool's version.
        command: `merge`.
    """

    output: str
    dry_run: bool
    base: str
    base_fingerprint: str
    adapters: tuple[AdapterReport, ...]
    format: str
    files: tuple[str, ...]
    weights: tuple[FoldedWeight, ...]
    copied: tuple[str, ...]
    cast: tuple[str, ...]
    dropped: tuple[DroppedTensor, ...]
    warnings: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    free_disk_bytes: int
    seconds: float
    resumed: tuple[str, ...] = ()
    ranks: str | None = None
    version: str = ""
    command: str = field(default="merge")

    def to_json(self) -> str:
        """The report as one JSON object; numbers that are not finite become null."""
        return json.dumps(_finite(asdict(self)), allow_nan=False)


@dataclass(frozen=True, slots=True)
class TransformedTensor:
    """A tensor of a transformed checkpoint.

    Attributes:
        name: Its name in the output.
        shape: The whole tensor's shape.
        dtype: Its element type in the output.
        src_parts: In how many parts each axis is cut in the source.
        dst_parts: In how many in the output.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    src_parts: tuple[int, ...]
    dst_parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransformReport:
    """What `transform` did, or in a dry run would do.

    Attributes:
        output: Where the output lies.
        dry_run: Whether nothing was written.
        source: The source's path.
        src_strategy: The source's strategy; None where it is whole, or an iteration, which needs none.
        dst_strategy: The output's strategy; None where it is whole.
        step: Epoch and step in the names of the source's files, as `9_1`, or the number of its iteration; empty where
            they have none.
        src_ranks: How many ranks the source has; 0 where it is whole.
        dst_ranks: How many the output has; 0 where it is whole.
        format: `ckpt` or `safetensors`.
        files: Names of the output's files; a single one is the output itself.
        tensors: What the output holds.
        dropped: Names of the source that the target has no layout for: optimizer states, and what was allowed.
        missing: Names of the target's strategy that the source does not have.
        warnings: What the user ought to know, a sentence each.
        bytes_read: Bytes of the source that are read for the output.
        bytes_written: Bytes of the output.
        peak_memory_bytes: The anonymous memory that is expected at most.
        free_disk_bytes: Room at the output's place before writing.
        seconds: Wall-clock time.
        resumed: Files that a killed run of the same plan, or runs of `ranks`, had completed.
        ranks: The ranks whose files were written, as `0-63`, where the output is left to other runs; else None. Then
            `files`, `bytes_read` and `bytes_written` are of these alone.
        crc_checked: Paths of the source's files whose CRC-32 was checked, before the writing or on the way.
        version: This tool's version.
        command: `transform`.
    """

    output: str
    dry_run: bool
    source: str
    src_strategy: str | None
    dst_strategy: str | None
    step: str
    src_ranks: int
    dst_ranks: int
    format: str
    files: tuple[str, ...]
    tensors: tuple[TransformedTensor, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    free_disk_bytes: int
    seconds: float
    resumed: tuple[str, ...] = ()
    ranks: str | None = None
    crc_checked: tuple[str, ...] = ()
    version: str = ""
    command: str = field(default="transform")

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(_finite(asdict(self)), allow_nan=False)


@dataclass(frozen=True, slots=True)
class AddedParameter:
    """A parameter that a method added to a network.

    Attributes:
        name: Its name.
        layer: The layer that it belongs to; empty for one of the network itself.
        shape: The whole tensor's shape.
        dtype: Its element type in the output.
        origin: What it begins with, as `he_uniform(2.23607)`, or the adapter's tensor that its values are.
        is_trained: Whether training changes it.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    origin: str
    is_trained: bool


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A layer that something spoke for, and why it was left as it is."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class InjectReport:
    """What `inject` did, or in a dry run would do.

    Attributes:
        output: Where the output lies.
        dry_run: Whether nothing was written.
        base: The base's path.
        base_fingerprint: As `ckpt_tools.fingerprint.fingerprint` defines it.
        config: What the configuration was read from.
        pet_type: The method, by MindFormers' name.
        adapter: The trained adapter whose values the new parameters have; None where they are fresh.
        adapter_names: What was done to its names to find the base's; empty where they are spelled alike.
        seed: What fresh values were drawn by.
        only_delta: Whether the output is the new parameters alone.
        src_strategy: The base's strategy; None where it is whole, or an iteration, which needs none.
        dst_strategy: The strategy that the output was cut by; None where it is whole.
        step: Epoch and step in the names of the base's files, or the number of its iteration; empty where they have
            none.
        src_ranks: How many ranks the base has; 0 where it is whole.
        dst_ranks: How many the output has; 0 where it is whole.
        format: `ckpt` or `safetensors`.
        files: Names of the output's files; a single one is the output itself.
        companions: Paths of the adapter's configuration, of the list of what is trained, and of the strategy.
        layers: The layers that were changed.
        near_misses: Layers that nearly were.
        added: The new parameters, in the output's order.
        replaced: Weights of the base that have the adapter's values.
        copied: Names in the output of tensors with the base's bytes.
        cast: Names in the output of tensors that were only cast to another type.
        dropped: Tensors of the inputs that are not in the output.
        trainable_parameters: How many parameters training changes.
        trainable_elements: How many numbers they have.
        trainable_bytes: The bytes that they take.
        total_elements: Numbers of the whole network.
        network_checked: Whether the output was compared with the network, and loaded into it.
        warnings: What the user ought to know, a sentence each.
        bytes_read: Bytes of the inputs that are read for the output.
        bytes_written: Bytes of the output.
        peak_memory_bytes: The anonymous memory that is expected at most.
        free_disk_bytes: Room at the output's place before writing.
        seconds: Wall-clock time.
        resumed: Files that a killed run of the same plan, or runs of `ranks`, had completed.
        ranks: The ranks whose files were written, as `0-63`, where the output is left to other runs; else None. Then
            `files`, `bytes_read` and `bytes_written` are of these alone.
        crc_checked: Paths of the base's files whose CRC-32 was checked, before the writing or on the way.
        version: This tool's version.
        command: `inject`.
    """

    output: str
    dry_run: bool
    base: str
    base_fingerprint: str
    config: str
    pet_type: str
    adapter: str | None
    adapter_names: str
    seed: int
    only_delta: bool
    src_strategy: str | None
    dst_strategy: str | None
    step: str
    src_ranks: int
    dst_ranks: int
    format: str
    files: tuple[str, ...]
    companions: tuple[str, ...]
    layers: tuple[str, ...]
    near_misses: tuple[NearMiss, ...]
    added: tuple[AddedParameter, ...]
    replaced: tuple[str, ...]
    copied: tuple[str, ...]
    cast: tuple[str, ...]
    dropped: tuple[DroppedTensor, ...]
    trainable_parameters: int
    trainable_elements: int
    trainable_bytes: int
    total_elements: int
    network_checked: bool
    warnings: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    free_disk_bytes: int
    seconds: float
    resumed: tuple[str, ...] = ()
    ranks: str | None = None
    crc_checked: tuple[str, ...] = ()
    version: str = ""
    command: str = field(default="inject")

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(_finite(asdict(self)), allow_nan=False)


@dataclass(frozen=True, slots=True)
class SplitParameter:
    """A parameter of an adapter that was cut out.

    Attributes:
        name: Its name in the adapter.
        source_name: Its name in the source.
        role: What it does.
        shape: Its shape.
        dtype: Its element type in the adapter.
    """

    name: str
    source_name: str
    role: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class ExtractedLayer:
    """A weight of a full fine-tune, and the low-rank change that was extracted of it.

    Attributes:
        name: The weight's name in the tuned checkpoint.
        rank: The rank of A and B.
        energy: The share of the change's sum of squares that B @ A has, 0 to 1.
        error: How far merging B @ A back is from the tuned weight, with its rounding: the Frobenius norm of the
            difference, as a share of that of the change.
        equal_share: Share of the elements, 0 to 1, that merging gives back bit for bit.
        delta_norm: Frobenius norm of the change.
    """

    name: str
    rank: int
    energy: float
    error: float
    equal_share: float
    delta_norm: float


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What `split` did, or in a dry run would do.

    Attributes:
        output: Where the adapter lies.
        dry_run: Whether nothing was written.
        source: The path of the tuned checkpoint.
        remainder: Where the rest lies; None where nobody asked for it.
        method: The method that the delta shows, as MindFormers' `pet_type`: `lora`, `ptuning2`, ...; `weights` of plain
            weights alone, `mixed` of several methods.
        families: How LoRA's parameters were spelled in the source.
        base_fingerprint: As `ckpt_tools.fingerprint.target_fingerprint` defines it; empty where the source has no base.
        config: What `adapter_config.json` says; None where none was written.
        format: `ckpt` or `safetensors`.
        files: Names of the adapter's files; a single one is the output itself.
        parameters: What the adapter holds.
        left: Names in the source of what is not in the adapter: the base.
        dropped: Tensors of the source that are in neither, and why.
        base: Of an extraction: the path of the base; else None.
        extracted: Of an extraction: the layers, with the proof of what was kept.
        warnings: What the user ought to know, a sentence each.
        bytes_read: Bytes of the source that are read for the outputs.
        bytes_written: Bytes of the outputs.
        peak_memory_bytes: The anonymous memory that is expected at most.
        free_disk_bytes: Room at the output's place before writing.
        seconds: Wall-clock time.
        resumed: Files that a killed run of the same plan had completed.
        version: This tool's version.
        command: `split`.
    """

    output: str
    dry_run: bool
    source: str
    remainder: str | None
    method: str
    families: tuple[str, ...]
    base_fingerprint: str
    config: Mapping[str, Any] | None
    format: str
    files: tuple[str, ...]
    parameters: tuple[SplitParameter, ...]
    left: tuple[str, ...]
    dropped: tuple[DroppedTensor, ...]
    warnings: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    free_disk_bytes: int
    seconds: float
    base: str | None = None
    extracted: tuple[ExtractedLayer, ...] = ()
    resumed: tuple[str, ...] = ()
    version: str = ""
    command: str = field(default="split")

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(_finite(asdict(self)), allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
