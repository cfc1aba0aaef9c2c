"""Prefix-Tuning in networks: MindFormers' own encoder of prefixes."""

from __future__ import annotations

from typing import Any

from surgery.methods import PrefixTuningConfig
from surgery.methods.prefix_tuning import PREFIX_TUNING
from surgery.network.adapter import PetAdapter
from surgery.network.packages import Cell, mindformers_pet_config, mindformers_prefix_tuning
from surgery.network.prefixes import add_prefix
from surgery.network.registry import register_adapter

__all__ = ["PrefixTuningAdapter"]


@register_adapter
class PrefixTuningAdapter(PetAdapter):
    """Puts a trained prefix, encoded by two dense layers, before the keys and values of every attention."""

    method = PREFIX_TUNING

    @classmethod
    def get_pet_model(cls, model: Cell | None = None, config: Any = None) -> Cell:
        network, parsed = cls.start(model, config)
        assert isinstance(parsed, PrefixTuningConfig)
        theirs = mindformers_pet_config.PrefixTuningConfig(
            prefix_token_num=parsed.prefix_token_num, mid_dim=parsed.mid_dim, dropout_rate=parsed.dropout_rate
        )
        get_prefix = mindformers_prefix_tuning.PrefixTuningAdapter.get_prefix
        return add_prefix(network, cls.method.pet_type, lambda facts: get_prefix(facts, theirs))
