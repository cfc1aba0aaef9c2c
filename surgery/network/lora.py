"""LoRA in networks: MindPet's `LoRADense`, and MindFormers' own cells in its parallel core."""

from __future__ import annotations

from typing import Any

from surgery.methods import LayerKind, LoraPetConfig, TargetLayer
from surgery.methods.lora import LORA, named_initialiser
from surgery.network.adapter import PetAdapter
from surgery.network.initialisers import mindspore_initialiser
from surgery.network.layers import compute_dtype, mindspore_dtype
from surgery.network.packages import (
    Cell,
    ColumnParallelLinearWithLoRA,
    LoRADense,
    RowParallelLinearWithLoRA,
)
from surgery.network.registry import register_adapter
from surgery.network.replacing import adopt_weights, replace_layers
from surgery.network.sharding import cut_of, shard_lora

__all__ = ["LoraAdapter"]


@register_adapter
class LoraAdapter(PetAdapter):
    """Puts LoRA beside linear layers, with the names, shapes and initial values that MindFormers gives it."""

    method = LORA
    kinds = frozenset(LayerKind)

    @classmethod
    def get_pet_model(cls, model: Cell | None = None, config: Any = None) -> Cell:
        network, parsed = cls.start(model, config)
        assert isinstance(parsed, LoraPetConfig)
        return replace_layers(network, parsed, _build, cls.kinds)


def _build(layer: Any, target: TargetLayer, config: LoraPetConfig) -> Cell:
    if target.kind is LayerKind.DENSE:
        return _build_dense(layer, target, config)
    return _build_parallel(layer, target, config)


def _build_dense(layer: Any, target: TargetLayer, config: LoraPetConfig) -> Cell:
    # Its weight is made first and then thrown away, as in MindFormers: so the same seed gives the same A.
    cell = LoRADense(
        in_channels=target.in_channels,
        out_channels=target.out_channels,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        lora_a_init=mindspore_initialiser(config.initialiser_of_a(target)),
        lora_b_init=mindspore_initialiser(named_initialiser(config.lora_b_init)),
        param_init_type=mindspore_dtype(config.dtype_of(target)),
        compute_dtype=compute_dtype(layer, config),
        has_bias=layer.has_bias,
        activation=layer.activation,
    )
    adopt_weights(cell, layer)
    cut = cut_of(layer)
    if cut is not None:
        shard_lora(cell, cut)
    return cell


def _build_parallel(layer: Any, target: TargetLayer, config: LoraPetConfig) -> Cell:
    kind = ColumnParallelLinearWithLoRA if target.kind is LayerKind.COLUMN_PARALLEL else RowParallelLinearWithLoRA
    cell = kind(
        input_size=layer.input_size,
        output_size=layer.output_size,
        config=layer.config,
        init_method=layer.init_method,
        bias=layer.has_bias,
        skip_bias_add=layer.skip_bias_add,
        transpose_b=layer.transpose_b,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        lora_a_init=mindspore_initialiser(config.initialiser_of_a(target)),
        lora_b_init=mindspore_initialiser(named_initialiser(config.lora_b_init)),
    )
    # MindFormers leaves the new cell with a weight of its own, to be loaded later.
    cell.weight = layer.weight
    if layer.has_bias:
        cell.bias = layer.bias
    return cell
