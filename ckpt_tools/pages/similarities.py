"""How alike adapters are, as a square of cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_tools.pages.blocks import Figure
from ckpt_tools.pages.colours import HEAT_STEPS
from ckpt_tools.pages.drawing import Mark, add_box, add_canvas, add_text, draw
from ckpt_tools.pages.text import count_of
from ckpt_tools.reports import AdapterSimilarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["similarity_figure"]

_CELL, _ROW, _PAD, _LETTER = 54, 22, 8, 6.6
_MOST = 30
_LONGEST = 28


def similarity_figure(names: Sequence[str], pairs: Sequence[AdapterSimilarity]) -> Figure | None:
    """A square whose colour is the cosine's magnitude; None where no two adapters can be compared.

    Args:
        names: The adapters, in order.
        pairs: The pairs that were compared.
    """
    known = {(pair.first, pair.other): pair for pair in pairs if pair.cosine is not None}
    members = [name for name in names if any(name in key for key in known)][:_MOST]
    if len(members) < 2:
        return None
    labels = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in members]
    left = _PAD + math.ceil(_LETTER * (max(map(len, labels)) + 4)) + _PAD
    cells = {
        (row, column): pair
        for row, first in enumerate(members)
        for column, other in enumerate(members)
        if (pair := known.get((first, other)) or known.get((other, first))) is not None
    }
    marks = {f"cosine-{row}-{column}": _mark(pair) for (row, column), pair in cells.items()}

    def paint(canvas: Canvas) -> None:
        axes = add_canvas(canvas)
        for number, label in enumerate(labels):
            middle = _PAD + _ROW * (number + 1.5)
            add_text(axes, left - _PAD, middle, f"{label}  {number + 1}", align="right")
            add_text(axes, left + _CELL * (number + 0.5), _PAD + _ROW / 2, str(number + 1), colour="muted")
            add_text(axes, left + _CELL * (number + 0.5), middle, "·", colour="muted")
        for (row, column), pair in cells.items():
            assert pair.cosine is not None
            corner = left + _CELL * column, _PAD + _ROW * (row + 1)
            step = min(HEAT_STEPS - 1, int(HEAT_STEPS * abs(pair.cosine)))
            add_box(axes, corner, (_CELL - 1, _ROW - 1), f"heat-{step}", gid=f"cosine-{row}-{column}")
            middles = corner[0] + _CELL / 2, corner[1] + _ROW / 2
            add_text(axes, *middles, f"{pair.cosine:.2f}", colour=f"heat-ink-{step}")

    width, height = left + _CELL * len(members) + _PAD, _PAD + _ROW * (len(members) + 1) + _PAD
    most = max(known.values(), key=lambda pair: abs(pair.cosine or 0.0))
    words = (
        f"{len(members)} adapters by {len(members)}. The most alike are {most.first} and {most.other}, with a cosine "
    )
    words += f"of {most.cosine:.2f}. All numbers are in the table below."
    note = "1: one is a multiple of the other; 0: they have nothing in common; -1: one takes back the other."
    if len(members) < len(names):
        note += f" Not in the picture: {count_of(len(names) - len(members), 'adapter')}."
    return Figure(
        "cosines", "Cosines of what the adapters add", words, draw("cosines", width, height, paint, marks), note
    )


def _mark(pair: AdapterSimilarity) -> Mark:
    text = f"{pair.first} and {pair.other}: {pair.cosine:.4f}, {pair.common_layers} common layers"
    return Mark(text, {"first": pair.first, "other": pair.other, "value": repr(pair.cosine)})
