"""P-Tuning v2 in networks: MindFormers' own encoder of prefixes."""

from __future__ import annotations

from typing import Any

from surgery.methods import Ptuning2Config
from surgery.methods.ptuning2 import PTUNING2
from surgery.network.adapter import PetAdapter
from surgery.network.packages import Cell, mindformers_pet_config, mindformers_ptuning2
from surgery.network.prefixes import add_prefix
from surgery.network.registry import register_adapter

__all__ = ["Ptuning2Adapter"]


@register_adapter
class Ptuning2Adapter(PetAdapter):
    """Puts a trained prefix before the keys and values of every attention."""

    method = PTUNING2

    @classmethod
    def get_pet_model(cls, model: Cell | None = None, config: Any = None) -> Cell:
        network, parsed = cls.start(model, config)
        assert isinstance(parsed, Ptuning2Config)
        theirs = mindformers_pet_config.Ptuning2Config(
            pre_seq_len=parsed.pre_seq_len,
            prefix_projection=parsed.prefix_projection,
            projection_dim=parsed.projection_dim,
            dropout_prob=parsed.dropout_prob,
        )
        get_prefix = mindformers_ptuning2.Ptuning2Adapter.get_prefix
        return add_prefix(network, cls.method.pet_type, lambda facts: get_prefix(facts, theirs))
