"""How the operators of a new cell are cut over devices, derived from the layer that it takes the place of.

A strategy has a tuple an input, and in it a number an axis: into how many parts the axis is cut. A layer's product has
those of its input `(rows, in)` and its weight. From them follow `rows`, `inner` and `outer`, the parts of the batch, of
the layer's input and of its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surgery.network.packages import Cell

__all__ = ["LayerCut", "cut_of", "is_transposed", "shard_adapter", "shard_lora", "shard_low_rank_adapter"]


@dataclass(frozen=True, slots=True)
class LayerCut:
    """Into how many parts a linear layer is cut.

    Attributes:
        rows: Its batch.
        inner: Its input.
        outer: Its output.
    """

    rows: int
    inner: int
    outer: int


def cut_of(layer: Cell) -> LayerCut | None:
    """How a linear layer is cut; None where it has no strategy."""
    strategy = getattr(layer.matmul, "in_strategy", None)
    if not strategy:
        return None
    (rows, inner), weight = strategy[0], strategy[1]
    return LayerCut(rows, inner, weight[0] if is_transposed(layer) else weight[1])


def is_transposed(layer: Cell) -> bool:
    """Whether a linear layer's weight is `(out, in)`."""
    return bool(layer.matmul.transpose_b)


def shard_lora(cell: Any, cut: LayerCut) -> None:
    """Cut MindPet's `LoRADense`, as MindFormers does for a weight of `(out, in)`.

    For one of `(in, out)` MindFormers 1.3.2 and 1.9.0 cut A, which is `(rank, in)` there too, by the wrong axis.
    """
    whole = ((cut.rows, cut.outer), (cut.rows, cut.outer))
    cell.lora_dropout.dropout.shard(((cut.rows, cut.inner),))
    cell.lora_a_matmul.shard(((cut.rows, cut.inner), (1, cut.inner)))
    cell.lora_b_matmul.shard(((cut.rows, 1), (cut.outer, 1)))
    cell.mul.shard((whole[0], ()))
    cell.add.shard(whole)


def shard_adapter(cell: Any, cut: LayerCut) -> None:
    """Cut the bottleneck of MindPet's `AdapterDense`: its input is the layer's output, its inside is whole."""
    cell.mindpet_delta_adapter.shard(
        strategy_matmul_down_sampler=((cut.rows, cut.outer), (1, cut.outer)),
        strategy_bias_down_sampler=((cut.rows, 1), (1,)),
        strategy_non_linearity=((cut.rows, 1),),
        strategy_matmul_up_sampler=((cut.rows, 1), (cut.outer, 1)),
        strategy_bias_up_sampler=((cut.rows, cut.outer), (cut.outer,)),
        strategy_residual_add=((cut.rows, cut.outer), (cut.rows, cut.outer)),
    )


def shard_low_rank_adapter(cell: Any, cut: LayerCut) -> None:
    """Cut the bottleneck of MindPet's `LowRankAdapterDense` likewise; its weights are products `(in, out)`."""
    cell.mindpet_delta_low_rank_adapter.shard(
        strategy_matmul_down_sampler_weight=((cut.outer, 1), (1, 1)),
        strategy_matmul_down_sampler_input=((cut.rows, cut.outer), (cut.outer, 1)),
        strategy_bias_down_sampler=((cut.rows, 1), (1,)),
        strategy_non_linearity=((cut.rows, 1),),
        strategy_matmul_up_sampler_weight=((1, 1), (1, cut.outer)),
        strategy_matmul_up_sampler_input=((cut.rows, 1), (1, cut.outer)),
        strategy_bias_up_sampler=((cut.rows, cut.outer), (cut.outer,)),
        strategy_residual_add=((cut.rows, cut.outer), (cut.rows, cut.outer)),
    )
