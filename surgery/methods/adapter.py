"""Bottleneck adapters (Houlsby et al., arXiv:1902.00751): down, an activation, up, added to a layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.methods.base import (
    Initialiser,
    LayerPetConfig,
    Method,
    NetworkShape,
    NewParameter,
    Side,
    Target,
    TargetLayer,
    option,
)
from surgery.methods.rules import one_of, positive

__all__ = ["ADAPTER", "NON_LINEARITIES", "AdapterConfig"]

# Of MindPet's activations those that keep a vector's width, have no parameter and draw nothing at random.
NON_LINEARITIES = (
    *("gelu", "fast_gelu", "relu", "relu6", "leakyrelu", "elu", "silu", "mish", "hswish", "hsigmoid"),
    *("tanh", "tanhshrink", "hardtanh", "sigmoid", "logsigmoid", "softsign", "softshrink", "hshrink"),
)


@dataclass(frozen=True, slots=True)
class AdapterConfig(LayerPetConfig):
    """How bottleneck adapters are trained; names and defaults are those of MindPet's `AdapterDense`.

    Attributes:
        bottleneck_size: The width between down and up.
        non_linearity: The activation between them.
    """

    pet_type: ClassVar[str] = "adapter"

    bottleneck_size: int = option(64, positive)
    non_linearity: str = option("gelu", one_of(*NON_LINEARITIES))


def _add_parameters(
    config: AdapterConfig, layers: Sequence[TargetLayer], network: NetworkShape | None
) -> tuple[NewParameter, ...]:
    del network
    added = []
    normal, zeros = Initialiser("normal", 0.01), Initialiser("zeros")
    for layer in layers:
        block = layer.parameter("mindpet_delta_adapter.mindpet_delta_adapter_block")
        dtype, width = config.dtype_of(layer), layer.out_channels
        for half, out, into, sides in (
            ("down_sampler", config.bottleneck_size, width, (Side.NONE, Side.OUTPUT)),
            ("up_sampler", width, config.bottleneck_size, (Side.OUTPUT, Side.NONE)),
        ):
            name = f"{block}.mindpet_delta_adapter_{half}"
            added.append(NewParameter(f"{name}.weight", (out, into), dtype, normal, sides=sides))
            added.append(NewParameter(f"{name}.bias", (out,), dtype, zeros, sides=sides[:1]))
    return tuple(added)


ADAPTER = Method(
    pet_type="adapter",
    title="bottleneck adapters",
    config=AdapterConfig,
    target=Target.LAYERS,
    add_parameters=_add_parameters,
    trained=("*mindpet_delta_adapter*",),
    cannot_fold="it adds layers with an activation, which no weight can hold",
)
