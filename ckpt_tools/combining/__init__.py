"""Several adapters' updates of a layer to one: the formulas of `surgery.combining`, applied a layer at a time."""

from __future__ import annotations

from ckpt_tools.combining.foretold import stand_ins
from ckpt_tools.combining.layers import bias_problem, combine_layers, layer_problems
from ckpt_tools.combining.model import Combination, Layer, Part

__all__ = ["Combination", "Layer", "Part", "bias_problem", "combine_layers", "layer_problems", "stand_ins"]
