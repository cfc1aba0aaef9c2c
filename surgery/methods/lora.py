"""LoRA (Hu et al., arXiv:2106.09685): a product of two narrow matrices beside the weight of a linear layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.methods.base import (
    Initialiser,
    LayerKind,
    LayerPetConfig,
    Method,
    NetworkShape,
    NewParameter,
    Side,
    Target,
    TargetLayer,
    option,
)
from surgery.methods.rules import fraction, one_of, positive, scale
from surgery.scaling import lora_scaling

__all__ = ["LORA", "LoraPetConfig"]

_INITIALISERS = ("normal", "zero", "zeros", "one", "ones", "he_uniform", "xavier_uniform")


@dataclass(frozen=True, slots=True)
class LoraPetConfig(LayerPetConfig):
    """How LoRA is trained; `surgery.LoraConfig` is what an adapter's file says.

    Attributes:
        lora_rank: Rows of A and columns of B.
        lora_alpha: The scale of their product is alpha / rank.
        lora_dropout: The share of the layer's input that training drops before A.
        lora_a_init: What A begins with. `normal`, the default, leaves that to the cell, as MindFormers does, which
            reads neither of these two: MindPet's `HeUniform(sqrt(5))`, in the parallel core N(0, 0.01).
        lora_b_init: What B begins with. Anything but `zero` changes what the network computes before it is trained.
    """

    pet_type: ClassVar[str] = "lora"
    ignored: ClassVar[tuple[str, ...]] = ("in_channels", "out_channels")  # of the design document's YAML

    lora_rank: int = option(8, positive)
    lora_alpha: float = option(16, scale)
    lora_dropout: float = option(0.01, fraction)
    lora_a_init: str = option("normal", one_of(*_INITIALISERS))
    lora_b_init: str = option("zero", one_of(*_INITIALISERS))

    @property
    def scaling(self) -> float:
        """The factor of B @ A."""
        return lora_scaling(self.lora_alpha, self.lora_rank)

    def initialiser_of_a(self, layer: TargetLayer) -> Initialiser:
        """What A begins with in a layer."""
        if self.lora_a_init != "normal":
            return named_initialiser(self.lora_a_init)
        if layer.kind is LayerKind.DENSE:
            return Initialiser("he_uniform", math.sqrt(5))
        return named_initialiser("normal")


def named_initialiser(name: str) -> Initialiser:
    """What an initialiser's name means to MindSpore when nothing else is said."""
    if name in ("zero", "zeros", "one", "ones"):
        return Initialiser(name.removesuffix("s") + "s")
    return Initialiser(name, 0.01 if name == "normal" else 0.0)


def _add_parameters(
    config: LoraPetConfig, layers: Sequence[TargetLayer], network: NetworkShape | None
) -> tuple[NewParameter, ...]:
    del network
    added = []
    for layer in layers:
        dense = layer.kind is LayerKind.DENSE
        names = ("mindpet_delta_lora_a", "mindpet_delta_lora_b") if dense else ("lora_A.weight", "lora_B.weight")
        dtype = config.dtype_of(layer) if dense else layer.dtype
        shapes = (config.lora_rank, layer.in_channels), (layer.out_channels, config.lora_rank)
        initialisers = config.initialiser_of_a(layer), named_initialiser(config.lora_b_init)
        sides = (Side.NONE, Side.INPUT), (Side.OUTPUT, Side.NONE)
        for name, shape, initialiser, along in zip(names, shapes, initialisers, sides, strict=True):
            added.append(NewParameter(layer.parameter(name), shape, dtype, initialiser, sides=along))
    return tuple(added)


LORA = Method(
    pet_type="lora",
    title="LoRA",
    config=LoraPetConfig,
    target=Target.LAYERS,
    add_parameters=_add_parameters,
    trained=("*mindpet_delta_lora_[abAB]", "*tk_delta_lora_[abAB]", "*.lora_[AB].weight"),
    folds=True,
)
