"""What is used of MindSpore, MindPet and MindFormers: the one place that knows where each version keeps it.

Two pairs of packages are tested: mindformers 1.3.2 on mindspore 2.7.2, and 1.9.0 on 2.9.0; both with mindpet 1.0.4.
"""

from __future__ import annotations

from typing import Any

from surgery.errors import MissingExtraError, Problem
from surgery.network.workarounds import give_cast, give_log_folder

try:
    import mindformers.pet.pet_config as mindformers_pet_config
    import mindspore
    from mindformers.models.configuration_utils import PretrainedConfig
    from mindformers.models.glm2 import glm2_modules, glm2_transformer
    from mindformers.models.modeling_utils import PreTrainedModel
    from mindformers.modules import layers as mindformers_layers
    from mindformers.pet.models.prefix_tuning import PrefixTuningModel
    from mindformers.pet.models.ptuning2 import Ptuning2Model
    from mindformers.pet.tuners import prefix_tuning_adapter as mindformers_prefix_tuning
    from mindformers.pet.tuners import ptuning2_adapter as mindformers_ptuning2
    from mindpet.delta.adapter import AdapterDense
    from mindpet.delta.lora import LoRADense
    from mindpet.delta.low_rank_adapter import LowRankAdapterDense, LowRankLinear
    from mindpet.log import log as mindpet_log
    from mindspore import nn, ops
except ModuleNotFoundError as error:
    raise MissingExtraError(
        Problem(
            "surgery.network",
            f"no module {error.name}",
            "MindSpore, MindPet and MindFormers",
            "Install them: pip install 'pet-surgery[mindspore]'",
        )
    ) from error

try:  # mindformers 1.5 and later
    from mindformers.parallel_core.training_graph.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from mindformers.parallel_core.training_graph.tensor_parallel.lora_layers import (
        ColumnParallelLinearWithLoRA,
        RowParallelLinearWithLoRA,
    )
except ImportError:
    ColumnParallelLinear = RowParallelLinear = ColumnParallelLinearWithLoRA = RowParallelLinearWithLoRA = None

__all__ = [
    "AdapterDense",
    "Cell",
    "ColumnParallelLinear",
    "ColumnParallelLinearWithLoRA",
    "Linear",
    "LoRADense",
    "LowRankAdapterDense",
    "Parameter",
    "PreTrainedModel",
    "PrefixTuningModel",
    "PretrainedConfig",
    "Ptuning2Model",
    "RowParallelLinear",
    "RowParallelLinearWithLoRA",
    "Tensor",
    "is_cell_of",
    "mindformers_pet_config",
    "mindformers_prefix_tuning",
    "mindformers_ptuning2",
    "mindspore",
    "nn",
    "ops",
]

Cell = nn.Cell
Parameter = mindspore.Parameter
Tensor = mindspore.Tensor
Linear = mindformers_layers.Linear


def _cells_of(*modules: Any) -> tuple[type[Any], ...]:
    """The classes of cells that some modules define."""
    classes = ((module, entry) for module in modules for entry in vars(module).values() if isinstance(entry, type))
    return tuple(entry for module, entry in classes if entry.__module__ == module.__name__ and issubclass(entry, Cell))


def is_cell_of(cell: Any, *kinds: Any) -> bool:
    """Whether a cell is of one of some classes, of which a version may lack some (None)."""
    return isinstance(cell, tuple(kind for kind in kinds if kind is not None))


give_cast((LowRankLinear, *_cells_of(mindformers_layers, glm2_modules, glm2_transformer)), ops.Cast())
give_log_folder(mindpet_log.const)
