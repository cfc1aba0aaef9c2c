"""(IA)^3 (Liu et al., arXiv:2205.05638), described: a trained factor for each output of a linear layer.

What a module of `surgery/methods` looks like: it knows no framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.methods import Initialiser, LayerPetConfig, Method, NetworkShape, NewParameter, Target, TargetLayer

__all__ = ["IA3", "Ia3Config"]


@dataclass(frozen=True, slots=True)
class Ia3Config(LayerPetConfig):
    """How (IA)^3 is trained: `target_modules` says on which layers, and nothing else is to be said."""

    pet_type: ClassVar[str] = "ia3"


def _add_parameters(
    config: Ia3Config, layers: Sequence[TargetLayer], network: NetworkShape | None
) -> tuple[NewParameter, ...]:
    del network
    return tuple(
        NewParameter(
            layer.parameter("mindpet_delta_ia3_scale"),
            (layer.out_channels,),
            config.dtype_of(layer),
            Initialiser("ones"),
        )
        for layer in layers
    )


IA3 = Method(
    pet_type="ia3",
    title="(IA)^3",
    config=Ia3Config,
    target=Target.LAYERS,
    add_parameters=_add_parameters,
    trained=("*mindpet_delta_ia3_scale",),
    cannot_fold="no command folds its factors into the weights",
)
