"""Take a method out of a network again: with what it trained folded into the weights, or without."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.folding import LowRankTerm, Merged
from ckpt_tools.tensors.views import Constant
from surgery.errors import MismatchError, NonFiniteError, Problem
from surgery.network.arrays import array_of, set_values
from surgery.network.cells import Slot, slots_of, swap_cells
from surgery.network.packages import (
    Cell,
    ColumnParallelLinearWithLoRA,
    Linear,
    LoRADense,
    RowParallelLinearWithLoRA,
    is_cell_of,
)
from surgery.network.prefixes import is_prefixed
from surgery.network.replacing import adopt_weights, originals_of
from surgery.network.sharding import is_transposed

__all__ = ["merge_and_unload", "unload"]


def merge_and_unload(network: Cell) -> Cell:
    """Fold LoRA into the weights that it stands beside, and hang the plain layers back.

    The weights are, bit for bit, those that `pet-merge` makes of the network's checkpoint. What is frozen stays frozen.

    Args:
        network: The network; changed in place, and only where everything can be folded.

    Returns:
        The network.

    Raises:
        MismatchError: There is no LoRA in it, or a method that cannot be folded; a weight is that of another cell too;
            or MindFormers itself put LoRA into its parallel core, and the layer that was there is not known.
        NonFiniteError: A weight would become NaN or Inf.
    """
    slots = [slot for slot in slots_of(network) if _is_lora(slot.cell)]
    originals = originals_of(network)
    others = [slot for slot in slots_of(network) if id(slot.cell) in originals and not _is_lora(slot.cell)]
    problems = [
        Problem(slot.path, f"a {type(slot.cell).__name__}, which no weight can hold", "LoRA", "Use unload")
        for slot in others
    ]
    problems += [
        Problem(
            slot.path,
            f"a {type(slot.cell).__name__} that MindFormers put there",
            "a layer to hang back",
            "Use pet-merge",
        )
        for slot in slots
        if id(slot.cell) not in originals and not isinstance(slot.cell, LoRADense)
    ]
    problems += _shared_weights(network, slots)
    if not slots and not others:
        problems.append(Problem(type(network).__name__, "no LoRA to fold", "a network with LoRA"))
    if problems:
        raise MismatchError(problems)
    merged = {id(slot.cell): _merged(slot) for slot in slots}
    plain = {id(slot.cell): _plain(slot.cell, originals) for slot in slots}
    for slot in slots:
        if id(slot.cell) in merged:
            set_values(slot.cell.weight, merged.pop(id(slot.cell)))
    swap_cells(network, plain)
    return network


def unload(network: Cell) -> Cell:
    """Take a method's parameters out of a network and leave its weights as they are. What is frozen stays frozen.

    Args:
        network: The network, or one with a prefix around it; changed in place.

    Returns:
        The network without the method.

    Raises:
        MismatchError: Nothing was added to it: there is nothing to take out.
    """
    if is_prefixed(network):
        return network.pet_model
    originals = originals_of(network)
    if not originals:
        reason = "nothing that was added; BitFit trains the network's own biases, which its checkpoint restores"
        raise MismatchError(Problem(type(network).__name__, reason, "a network with added cells"))
    swap_cells(network, originals)
    return network


def _is_lora(cell: Any) -> bool:
    return is_cell_of(cell, LoRADense, ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA)


def _shared_weights(network: Cell, slots: list[Slot]) -> list[Problem]:
    """Weights that another cell uses as well, with an update of its own or with none: one weight cannot be both."""
    holders: dict[int, dict[int, str]] = {}
    for path, cell in (("the network", network), *((slot.path, slot.cell) for slot in slots_of(network))):
        for parameter in cell.get_parameters(expand=False):
            holders.setdefault(id(parameter), {}).setdefault(id(cell), path)
    problems = []
    for slot in {id(slot.cell): slot for slot in reversed(slots)}.values():
        others = [path for key, path in holders[id(slot.cell.weight)].items() if key != id(slot.cell)]
        if others:
            found = f"a weight that is that of {' and '.join(others)} too, where it must stay as it is"
            problems.append(Problem(slot.path, found, "a weight of its own", "Give it a copy, or use unload"))
    return problems


def _plain(cell: Any, originals: dict[int, Cell]) -> Cell:
    if id(cell) in originals:
        return originals[id(cell)]
    # MindFormers' own `get_pet_model` forgets the layer; its `Linear` computes in the same type as LoRADense does.
    plain = Linear(
        cell.in_channels,
        cell.out_channels,
        has_bias=cell.has_bias,
        transpose_b=is_transposed(cell),
        compute_dtype=cell.dtype,
    )
    adopt_weights(plain, cell)
    plain.activation, plain.activation_flag = cell.activation, cell.activation_flag
    return plain


def _merged(slot: Slot) -> np.ndarray:
    """The weight of a layer with its LoRA folded in."""
    cell = slot.cell
    if isinstance(cell, LoRADense):
        a, b = array_of(cell.mindpet_delta_lora_a), array_of(cell.mindpet_delta_lora_b)
    else:
        a, b = array_of(cell.lora_A.weight), array_of(cell.lora_B.weight)
    weight = array_of(cell.weight)
    transposed = is_transposed(cell)
    left, right = (b, a) if transposed else (a.T, b.T)
    term = LowRankTerm(_lazy(left), _lazy(right), float(cell.scaling))
    with np.errstate(over="ignore", invalid="ignore"):  # looked for in the result
        merged = Merged(_lazy(weight), (term,), dtype_of(weight)).read_all()
    if not np.isfinite(merged.astype(np.float32)).all():
        raise NonFiniteError(Problem(slot.path, "NaN or Inf in the merged weight", "finite values"))
    return merged


def _lazy(array: np.ndarray) -> Constant:
    return Constant(array, dtype_of(array))
