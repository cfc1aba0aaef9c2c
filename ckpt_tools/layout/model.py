"""How a parameter is cut over devices, as a strategy file says it: facts, and nothing computed of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Layout", "Strategy"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one parameter is cut over the devices of one pipeline stage.

    Device axes are counted from the right, as MindSpore does: 0 is the last axis of the device matrix.

    Attributes:
        device_matrix: The devices of the stage as a matrix; ranks count it row by row.
        tensor_map: For each axis of the tensor the device axes that cut it, the outermost cut first; `()` where it is
            not cut.
        shard_step: `opt_weight_shard_step`: how far apart two ranks with neighbouring optimizer shards are; 0 without.
        shard_size: `opt_weight_shard_size`: in how many parts axis 0 is cut further, over devices that would hold the
            same slice; 0 without, -1 over all of them.
        split_shape: `param_split_shape`: the lengths along axis 0 of the parts of an uneven cut; empty for equal parts.
        indices_offset: `indices_offset`, as the file has it; what an uneven cut does not need.
        field: `field`, as the file has it: 0 but for the parameter server's embeddings.
        expanded_shape: The tensor's shape as the map counts its axes, where the compiler may have reshaped an axis that
            several device axes cut to one axis for each; else empty. See `ckpt_tools.layout.expanded`.
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0
    split_shape: tuple[int, ...] = ()
    indices_offset: tuple[int, ...] = ()
    field: int = 0
    expanded_shape: tuple[int, ...] = ()

    @property
    def devices(self) -> int:
        """Devices of the stage."""
        return math.prod(self.device_matrix)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A whole strategy: every stage of the pipeline.

    Attributes:
        path: The file or folder it was read from.
        stages: For each stage, parameter name to layout, in the order of the file. There is at least one stage.
        stage_devices: Devices of each stage: the same number in all of them.
    """

    path: Path
    stages: tuple[Mapping[str, Layout], ...]
    stage_devices: int

    @property
    def ranks(self) -> int:
        """Devices of all stages."""
        return len(self.stages) * self.stage_devices

    def stage_of(self, rank: int) -> int:
        """The stage that a rank belongs to."""
        return rank // self.stage_devices
