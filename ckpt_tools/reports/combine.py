"""What a combination of adapters did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tools.reports.base import DroppedTensor, OutputReport
from ckpt_tools.reports.merge import AdapterReport, CombinedLayer

__all__ = ["CombineReport", "CombinedParameter"]


@dataclass(frozen=True, slots=True)
class CombinedParameter:
    """One tensor of the combined adapter.

    Attributes:
        name: Its name in the output.
        sources: The tensors that it was made of, each as `PATH: NAME`.
        shape: Its shape.
        dtype: Its element type.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineReport(OutputReport):
    """What `combine` did, or in a dry run would do.

    Attributes:
        adapters: The adapters that went in.
        method: How they were combined, as of `--method`.
        how: The method and its numbers, for people.
        layers: The layers with A and B.
        parameters: All tensors of the output.
        dropped: Tensors of the inputs that are not in the output.
        base_fingerprint: That of the base of the result; empty where it is not known.
        config: What `adapter_config.json` says.
    """

    adapters: tuple[AdapterReport, ...]
    method: str
    how: str
    layers: tuple[CombinedLayer, ...]
    parameters: tuple[CombinedParameter, ...]
    dropped: tuple[DroppedTensor, ...]
    base_fingerprint: str = ""
    config: Mapping[str, Any] | None = None
    command: str = "combine"
