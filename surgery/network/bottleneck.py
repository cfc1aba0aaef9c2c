"""Bottleneck adapters in networks: MindPet's `AdapterDense`."""

from __future__ import annotations

from typing import Any

from surgery.methods import AdapterConfig, TargetLayer
from surgery.methods.adapter import ADAPTER
from surgery.network.adapter import PetAdapter
from surgery.network.layers import compute_dtype, mindspore_dtype
from surgery.network.packages import AdapterDense, Cell
from surgery.network.registry import register_adapter
from surgery.network.replacing import adopt_weights, replace_layers
from surgery.network.sharding import cut_of, shard_adapter

__all__ = ["AdapterAdapter"]


@register_adapter
class AdapterAdapter(PetAdapter):
    """Puts bottlenecks behind linear layers."""

    method = ADAPTER

    @classmethod
    def get_pet_model(cls, model: Cell | None = None, config: Any = None) -> Cell:
        network, parsed = cls.start(model, config)
        assert isinstance(parsed, AdapterConfig)
        return replace_layers(network, parsed, _build, cls.kinds)


def _build(layer: Any, target: TargetLayer, config: AdapterConfig) -> Cell:
    cell = AdapterDense(
        in_channels=target.in_channels,
        out_channels=target.out_channels,
        has_bias=layer.has_bias,
        activation=layer.activation,
        bottleneck_size=config.bottleneck_size,
        non_linearity=config.non_linearity,
        param_init_type=mindspore_dtype(config.dtype_of(target)),
        compute_dtype=compute_dtype(layer, config),
    )
    adopt_weights(cell, layer)
    cut = cut_of(layer)
    if cut is not None:
        shard_adapter(cell, cut)
    return cell
