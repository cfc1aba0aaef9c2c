"""Linear layers as networks have them: which cell is one, what a method needs to know of it, what stands in its way."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from surgery.cell_rules import BODIES, DEFAULT_TARGETS, CellFacts, CellRule, SelectedCells, select_cells
from surgery.errors import CorruptInputError, Problem
from surgery.methods import LayerKind, LayerPetConfig, TargetLayer
from surgery.network.cells import slots_of
from surgery.network.packages import (
    Cell,
    ColumnParallelLinear,
    Linear,
    PreTrainedModel,
    RowParallelLinear,
    is_cell_of,
    mindspore,
    nn,
)

__all__ = [
    "body_of",
    "compute_dtype",
    "dtype_name",
    "kind_of",
    "mindspore_dtype",
    "select_layers",
    "target_of",
]

_DTYPES = {
    mindspore.float32: "fp32",
    mindspore.float16: "fp16",
    mindspore.bfloat16: "bf16",
    mindspore.float64: "fp64",
}


def dtype_name(dtype: Any) -> str:
    """A MindSpore type by this project's name; whole numbers and others have MindSpore's, in lower case."""
    return _DTYPES.get(dtype) or str(dtype).lower()


def mindspore_dtype(name: str) -> Any:
    """The MindSpore type of this project's name (`fp32`) or of MindSpore's (`float32`)."""
    by_name = {ours: theirs for theirs, ours in _DTYPES.items()}
    return by_name.get(name) or getattr(mindspore, name)


def compute_dtype(layer: Any, config: Any) -> Any:
    """The type to compute in: the configuration's, or what the layer computes in."""
    if config.compute_dtype is not None:
        return mindspore_dtype(config.compute_dtype)
    return layer.dtype if isinstance(layer, Linear) else layer.weight.dtype


def kind_of(cell: Cell) -> LayerKind | None:
    """How a cell holds its weight; None where it is no linear layer, or one whose computation is not known."""
    if type(cell) is nn.Dense or (isinstance(cell, Linear) and type(cell).construct is Linear.construct):
        return LayerKind.DENSE
    if ColumnParallelLinear is not None and type(cell) is ColumnParallelLinear:
        return LayerKind.COLUMN_PARALLEL
    if RowParallelLinear is not None and type(cell) is RowParallelLinear:
        return LayerKind.ROW_PARALLEL
    return None


def target_of(cell: Cell) -> TargetLayer:
    """What a method needs to know of a linear layer; it is called what its weight is called."""
    kind = kind_of(cell)
    assert kind is not None, "only linear layers are selected"
    name = cell.weight.name.rpartition(".")[0]
    sizes = (cell.in_channels, cell.out_channels) if kind is LayerKind.DENSE else (cell.input_size, cell.output_size)
    return TargetLayer(name, *sizes, dtype_name(cell.weight.dtype), kind)


def body_of(network: Cell) -> str:
    """The attribute of a MindFormers network from which its rules begin; empty for any other network."""
    if not isinstance(network, PreTrainedModel):
        return ""
    return next((name for name in BODIES if network._cells.get(name) is not None), "")


def select_layers(network: Cell, config: LayerPetConfig, kinds: Set[LayerKind]) -> SelectedCells:
    """The layers of a network that a configuration selects.

    Args:
        network: The network.
        config: The rule; `DEFAULT_TARGETS` where it has none.
        kinds: The kinds of layers that the method knows.

    Raises:
        MismatchError: It selects none.
        CorruptInputError: Two layers have weights of one name.
    """
    facts: list[CellFacts] = []
    names: dict[str, dict[int, str]] = {}
    for slot in slots_of(network):
        facts.append(CellFacts(slot.path, _obstacle(slot.cell, kinds)))
        if not facts[-1].obstacle:
            names.setdefault(slot.cell.weight.name, {})[id(slot.cell.weight)] = slot.path
    rule = CellRule(config.target_modules or DEFAULT_TARGETS, config.exclude_layers or ())
    selected = select_cells(rule, facts, body=body_of(network))
    twice = {name: paths for name, paths in names.items() if len(paths) > 1}
    if twice:
        raise CorruptInputError(
            Problem(
                " and ".join(list(paths.values())[:2]),
                f"weights of one name, {name!r}",
                "a name for each parameter",
                "Call network.update_parameters_name() before",
            )
            for name, paths in twice.items()
        )
    return selected


def _obstacle(cell: Cell, kinds: Set[LayerKind]) -> str:
    """Why a cell cannot be replaced; empty where it can."""
    name, kind = type(cell).__name__, kind_of(cell)
    article = "an" if name[:1].upper() in "AEIOU" else "a"
    if kind is None:
        known = is_cell_of(cell, nn.Dense, Linear, ColumnParallelLinear, RowParallelLinear)
        return f"{article} {name}, " + (
            "a linear layer with a computation of its own" if known else "which is no linear layer"
        )
    if kind not in kinds:
        return f"{article} {name} of the parallel core, for which there is only LoRA"
    if cell.weight is None:
        return f"{article} {name} without a weight of its own, which is handed to it"
    if cell.weight.ndim != 2:
        return f"{article} {name} of experts, whose weight has {cell.weight.ndim} axes"
    return ""
