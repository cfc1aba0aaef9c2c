"""BitFit (Ben Zaken et al., arXiv:2106.10199): nothing is added, and the biases that the network has are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.methods.base import Method, NetworkShape, NewParameter, PetConfig, Target, TargetLayer

__all__ = ["BITFIT", "BitFitConfig"]


@dataclass(frozen=True, slots=True)
class BitFitConfig(PetConfig):
    """How BitFit is trained: what it freezes and trains beside the biases, and no more.

    The bias of a norm, which MindSpore calls `beta`, is not among them for MindPet either: `freeze_exclude: ['*beta']`
    trains it.
    """

    pet_type: ClassVar[str] = "bitfit"


def _add_parameters(
    config: BitFitConfig, layers: Sequence[TargetLayer], network: NetworkShape | None
) -> tuple[NewParameter, ...]:
    del config, layers, network
    return ()


BITFIT = Method(
    pet_type="bitfit",
    title="BitFit",
    config=BitFitConfig,
    target=Target.BIASES,
    add_parameters=_add_parameters,
    trained=("*bias",),
    cannot_fold="it trains weights of the network itself, which hold the result already",
)
