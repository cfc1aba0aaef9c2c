"""What a strategy says, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_tools.layout import Layout, Strategy
from ckpt_tools.layout.slices import cut_of
from ckpt_tools.reports import InspectedLayout
from surgery.errors import MismatchError

__all__ = ["layouts_of"]


def layouts_of(strategy: Strategy, selects: Callable[[str], bool]) -> tuple[InspectedLayout, ...]:
    """The layouts of a strategy, in the order of its stages and files.

    Args:
        strategy: The strategy.
        selects: Whether a name is of interest.
    """
    return tuple(
        _inspected(stage, name, layout)
        for stage, layouts in enumerate(strategy.stages)
        for name, layout in layouts.items()
        if selects(name)
    )


def _inspected(stage: int, name: str, layout: Layout) -> InspectedLayout:
    parts: tuple[int, ...] = ()
    replicas = 0
    try:
        # A map that cuts nothing may be written without axes: how many there are, the tensor's shape says.
        cut = cut_of(layout, len(layout.tensor_map), name)
        parts = cut.parts
        replicas = layout.devices // len(cut.first_holders)
    except MismatchError:
        pass
    return InspectedLayout(
        stage,
        name,
        layout.device_matrix,
        layout.tensor_map,
        parts,
        replicas,
        layout.shard_size * bool(layout.shard_step),
    )
