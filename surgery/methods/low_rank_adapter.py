"""Low-rank adapters (Karimi Mahabadi et al., arXiv:2106.04647): bottleneck adapters whose weights are products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.errors import MismatchError, Problem
from surgery.methods.adapter import NON_LINEARITIES
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
from surgery.methods.lora import named_initialiser
from surgery.methods.rules import one_of, positive

__all__ = ["LOW_RANK_ADAPTER", "LowRankAdapterConfig"]


@dataclass(frozen=True, slots=True)
class LowRankAdapterConfig(LayerPetConfig):
    """How low-rank adapters are trained; names and defaults are those of MindPet's `LowRankAdapterDense`.

    Attributes:
        reduction_factor: The layer's width is divided by it to give the width between down and up.
        low_rank_size: The rank of the weights of down and up.
        low_rank_w_init: What the factors of these weights begin with.
        non_linearity: The activation between down and up.
    """

    pet_type: ClassVar[str] = "low_rank_adapter"

    reduction_factor: int = option(1, positive)
    low_rank_size: int = option(1, positive)
    low_rank_w_init: str = option("xavier_uniform", one_of("xavier_uniform", "he_uniform", "normal", "zeros", "ones"))
    non_linearity: str = option("gelu", one_of(*NON_LINEARITIES))


def _add_parameters(
    config: LowRankAdapterConfig, layers: Sequence[TargetLayer], network: NetworkShape | None
) -> tuple[NewParameter, ...]:
    del network
    narrow = [layer for layer in layers if layer.out_channels < config.reduction_factor]
    if narrow:
        raise MismatchError(
            Problem(
                layer.name,
                f"reduction_factor {config.reduction_factor} for an output of {layer.out_channels}",
                "a factor that leaves a width of at least 1",
                "Give a smaller reduction_factor, or leave the layer out with exclude_layers",
            )
            for layer in narrow
        )
    added = []
    initialiser, rank, stem = named_initialiser(config.low_rank_w_init), config.low_rank_size, "mindpet_delta_low_rank"
    for layer in layers:
        dtype, width = config.dtype_of(layer), layer.out_channels
        inner = width // config.reduction_factor
        for half, into, out, sides in (
            ("down_sampler", width, inner, (Side.OUTPUT, Side.NONE)),
            ("up_sampler", inner, width, (Side.NONE, Side.OUTPUT)),
        ):
            name = layer.parameter(f"{stem}_adapter.{stem}_adapter_{half}")
            left, right = f"{name}.{stem}_adapter_weight_left", f"{name}.{stem}_adapter_weight_right"
            zeros = Initialiser("zeros")
            added.append(NewParameter(left, (into, rank), dtype, initialiser, sides=(sides[0], Side.NONE)))
            added.append(NewParameter(right, (rank, out), dtype, initialiser, sides=(Side.NONE, sides[1])))
            added.append(NewParameter(f"{name}.bias", (out,), dtype, zeros, sides=sides[1:]))
    return tuple(added)


LOW_RANK_ADAPTER = Method(
    pet_type="low_rank_adapter",
    title="low-rank adapters",
    config=LowRankAdapterConfig,
    target=Target.LAYERS,
    add_parameters=_add_parameters,
    trained=("*mindpet_delta_low_rank_adapter*",),
    cannot_fold="it adds layers with an activation, which no weight can hold",
)
