"""What an injection did."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.reports.base import DroppedTensor, OutputReport

__all__ = ["AddedParameter", "InjectReport", "NearMiss"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectReport(OutputReport):
    """What `inject` did, or in a dry run would do.

    Attributes:
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
        ranks: The ranks whose files were written, as `0-63`, where the output is left to other runs; else None. Then
            `files`, `bytes_read` and `bytes_written` are of these alone.
        crc_checked: Paths of the inputs' files whose CRC-32 was checked, before the writing or on the way.
    """

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
    ranks: str | None = None
    crc_checked: tuple[str, ...] = ()
    command: str = "inject"
