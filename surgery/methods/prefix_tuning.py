"""Prefix-Tuning (Li and Liang, arXiv:2101.00190): a prefix of keys and values, encoded by two dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.methods.base import Method, NetworkShape, NewParameter, PetConfig, Target, TargetLayer, option
from surgery.methods.prefixes import long_prefix_warning, prefix_parameters
from surgery.methods.rules import fraction, positive

__all__ = ["PREFIX_TUNING", "PrefixTuningConfig"]


@dataclass(frozen=True, slots=True)
class PrefixTuningConfig(PetConfig):
    """How Prefix-Tuning is trained.

    Attributes:
        prefix_token_num: Tokens of the prefix.
        mid_dim: The width between the two dense layers behind their embedding.
        dropout_rate: The share of the prefix that training drops.
    """

    pet_type: ClassVar[str] = "prefixtuning"
    ignored: ClassVar[tuple[str, ...]] = ("num_layers", "num_heads", "kv_channels")  # GLM2 adds them

    prefix_token_num: int = option(128, positive)
    mid_dim: int = option(512, positive)
    dropout_rate: float = option(0.1, fraction, spellings=("dropout_prob",))

    @property
    def warnings(self) -> tuple[str, ...]:
        return long_prefix_warning("prefix_token_num", self.prefix_token_num)


def _add_parameters(
    config: PrefixTuningConfig, layers: Sequence[TargetLayer], network: NetworkShape | None
) -> tuple[NewParameter, ...]:
    del layers
    assert network is not None, "a prefix has the shape of the network's attention"
    return prefix_parameters("prefixtuning", config.prefix_token_num, config.mid_dim, network)


PREFIX_TUNING = Method(
    pet_type="prefixtuning",
    title="Prefix-Tuning",
    config=PrefixTuningConfig,
    target=Target.ATTENTION,
    add_parameters=_add_parameters,
    trained=("*mindpet_delta_prefixtuning*",),
    cannot_fold="it trains a prefix and changes no weight",
)
