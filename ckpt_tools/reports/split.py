"""What a split did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.reports.base import DroppedTensor, OutputReport

__all__ = ["ExtractedLayer", "SplitParameter", "SplitReport"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport(OutputReport):
    """What `split` did, or in a dry run would do.

    Attributes:
        source: The path of the tuned checkpoint.
        remainder: Where the rest lies; None where nobody asked for it.
        method: The method that the delta shows, as MindFormers' `pet_type`: `lora`, `ptuning2`, ...; `weights` of plain
            weights alone, `mixed` of several methods.
        families: How LoRA's parameters were spelled in the source.
        base_fingerprint: As `ckpt_tools.fingerprint.target_fingerprint` defines it; empty where it is not known.
        config: What `adapter_config.json` says; None where none was written.
        parameters: What the adapter holds.
        left: Names in the source of what is not in the adapter: the base.
        dropped: Tensors of the source that are in neither, and why.
        base: Of an extraction: the path of the base; else None.
        extracted: Of an extraction: the layers, with the proof of what was kept.
    """

    source: str
    remainder: str | None
    method: str
    families: tuple[str, ...]
    base_fingerprint: str
    config: Mapping[str, Any] | None
    parameters: tuple[SplitParameter, ...]
    left: tuple[str, ...]
    dropped: tuple[DroppedTensor, ...]
    base: str | None = None
    extracted: tuple[ExtractedLayer, ...] = ()
    command: str = "split"
