"""The cells of a network: where each hangs, and how another is hung into its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from surgery.network.packages import Cell
from surgery.network.workarounds import forget_graphs, swap_in_lists

__all__ = ["Slot", "slots_of", "swap_cells"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a network where a cell hangs.

    Attributes:
        parent: The cell that it hangs in.
        name: Under which name.
        path: The names from the network down, with dots between.
        cell: What hangs there.
    """

    parent: Any
    name: str
    path: str
    cell: Any


def slots_of(network: Cell, path: str = "") -> Iterator[Slot]:
    """All places below a cell, each behind the one that it lies in.

    A cell that hangs in several places is found in each, but what lies in it only once: it is the same there.
    """
    yield from _slots_below(network, path, {id(network)})


def _slots_below(parent: Any, path: str, seen: set[int]) -> Iterator[Slot]:
    for name, cell in list(parent._cells.items()):
        if cell is None:
            continue
        slot = Slot(parent, name, f"{path}.{name}" if path else name, cell)
        yield slot
        if id(cell) not in seen:
            seen.add(id(cell))
            yield from _slots_below(cell, slot.path, seen)


def swap_cells(network: Cell, replacements: Mapping[int, Any]) -> None:
    """Hang other cells into the places of some, wherever these hang.

    Names of parameters stay what they are, as assigning an attribute would not leave them.

    Args:
        network: The network; changed in place.
        replacements: `id` of a cell to the cell that takes its place.
    """
    holders = {id(network): network}
    for slot in list(slots_of(network)):
        holders[id(slot.cell)] = slot.cell
        if id(slot.cell) in replacements:
            slot.parent._cells[slot.name] = replacements[id(slot.cell)]
    for holder in holders.values():
        swap_in_lists(holder, lambda cell: replacements.get(id(cell), cell))
    forget_graphs(holders.values())
