"""Low-rank adapters in networks: MindPet's `LowRankAdapterDense`."""

from __future__ import annotations

from typing import Any

from surgery.methods import LowRankAdapterConfig, TargetLayer
from surgery.methods.lora import named_initialiser
from surgery.methods.low_rank_adapter import LOW_RANK_ADAPTER
from surgery.network.adapter import PetAdapter
from surgery.network.initialisers import mindspore_initialiser
from surgery.network.layers import compute_dtype, mindspore_dtype
from surgery.network.packages import Cell, LowRankAdapterDense
from surgery.network.registry import register_adapter
from surgery.network.replacing import adopt_weights, replace_layers
from surgery.network.sharding import cut_of, shard_low_rank_adapter

__all__ = ["LowRankAdapter"]


@register_adapter
class LowRankAdapter(PetAdapter):
    """Puts bottlenecks behind linear layers, whose weights are products of two narrow matrices."""

    method = LOW_RANK_ADAPTER

    @classmethod
    def get_pet_model(cls, model: Cell | None = None, config: Any = None) -> Cell:
        network, parsed = cls.start(model, config)
        assert isinstance(parsed, LowRankAdapterConfig)
        return replace_layers(network, parsed, _build, cls.kinds)


def _build(layer: Any, target: TargetLayer, config: LowRankAdapterConfig) -> Cell:
    # Describing the parameters first refuses a layer that is narrower than the factor, in this project's words.
    LOW_RANK_ADAPTER.add_parameters(config, (target,), None)
    cell = LowRankAdapterDense(
        in_channels=target.in_channels,
        out_channels=target.out_channels,
        has_bias=layer.has_bias,
        activation=layer.activation,
        reduction_factor=config.reduction_factor,
        low_rank_size=config.low_rank_size,
        low_rank_w_init=mindspore_initialiser(named_initialiser(config.low_rank_w_init)),
        non_linearity=config.non_linearity,
        param_init_type=mindspore_dtype(config.dtype_of(target)),
        compute_dtype=compute_dtype(layer, config),
    )
    adopt_weights(cell, layer)
    cut = cut_of(layer)
    if cut is not None:
        shard_low_rank_adapter(cell, cut)
    return cell
