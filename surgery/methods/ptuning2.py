"""P-Tuning v2 (Liu et al., arXiv:2110.07602): a prefix of keys and values for every attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.methods.base import Method, NetworkShape, NewParameter, PetConfig, Target, TargetLayer, option
from surgery.methods.prefixes import long_prefix_warning, prefix_parameters
from surgery.methods.rules import flag, fraction, positive

__all__ = ["PTUNING2", "Ptuning2Config"]


@dataclass(frozen=True, slots=True)
class Ptuning2Config(PetConfig):
    """How P-Tuning v2 is trained.

    Attributes:
        pre_seq_len: Tokens of the prefix.
        prefix_projection: Whether two dense layers stand behind the embedding of the prefix.
        projection_dim: The width between them.
        dropout_prob: The share of the prefix that training drops. The feature card calls it `dropout_rate`, which no
            release of MindFormers reads.
    """

    pet_type: ClassVar[str] = "ptuning2"
    ignored: ClassVar[tuple[str, ...]] = ("num_layers", "num_heads", "kv_channels")  # GLM2 adds them

    pre_seq_len: int = option(128, positive)
    prefix_projection: bool = option(False, flag)
    projection_dim: int = option(128, positive)
    dropout_prob: float = option(0.01, fraction, spellings=("dropout_rate",))

    @property
    def warnings(self) -> tuple[str, ...]:
        return long_prefix_warning("pre_seq_len", self.pre_seq_len)


def _add_parameters(
    config: Ptuning2Config, layers: Sequence[TargetLayer], network: NetworkShape | None
) -> tuple[NewParameter, ...]:
    del layers
    assert network is not None, "a prefix has the shape of the network's attention"
    projection = config.projection_dim if config.prefix_projection else None
    return prefix_parameters("ptuning2", config.pre_seq_len, projection, network)


PTUNING2 = Method(
    pet_type="ptuning2",
    title="P-Tuning v2",
    config=Ptuning2Config,
    target=Target.ATTENTION,
    add_parameters=_add_parameters,
    trained=("*mindpet_delta_ptuning2*",),
    cannot_fold="it trains a prefix and changes no weight",
)
