"""What differs between two checkpoints, as tables: by layer, and by module over all layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckpt_tools.cli.common import printable
from ckpt_tools.cli.folding_names import block_of, fold_names
from ckpt_tools.cli.summary import percent
from ckpt_tools.cli.table import Column, elide, shape_text, table
from ckpt_tools.reports import ComparedTensor, Comparison

__all__ = ["difference_lines"]

_MAX_NAMES = 20


def difference_lines(comparison: Comparison, width: int | None, *, list_all: bool) -> list[str]:
    """What differs.

    Args:
        comparison: The comparison.
        width: Columns of the terminal, or None.
        list_all: Whether every tensor that differs has a line of its own, and no name is left out.
    """
    tensors = comparison.tensors
    differing = [tensor for tensor in tensors if not tensor.equal_bits]
    same_values = [tensor for tensor in differing if tensor.differing == 0]
    verdict, path = "equal" if comparison.equal else "they differ", printable(comparison.other)
    path = path if width is None else elide(path, width - len(verdict) - len("against : "))
    lines = [f"against {path}: {verdict}"]
    equal = len(tensors) - len(differing)
    facts = [("equal", f"{equal} of {len(tensors)} tensors that both have, to the bit")]
    if differing:
        facts.append(
            ("differ", f"{len(differing)}" + (f"; {len(same_values)} in their type alone" if same_values else ""))
        )
    lines += [f"  {label:<11} {text}" for label, text in facts]
    for label, names in (("only here", comparison.only_here), ("only there", comparison.only_there)):
        lines += _only(label, names, width, list_all=list_all)
    shapes = [tensor for tensor in differing if tensor.differing is None]
    lines += _kinds(shapes, "shape and type", width)
    lines += _kinds([t for t in differing if t.differing is not None and t.dtype != t.other_dtype], "type", width)
    changed = [tensor for tensor in differing if tensor.differing]
    if changed and list_all:
        lines += ["", *_values("tensor", [(tensor.name, [tensor]) for tensor in changed], width)]
    elif changed:
        lines += ["", *_values("by layer", _by_layer(tensors), width)]
        folded = fold_names((tensor.name, tensor.shape, tensor) for tensor in changed)
        lines += ["", *_values("by tensor", folded, width)]
    return lines


def _only(label: str, names: Sequence[str], width: int | None, *, list_all: bool) -> list[str]:
    if not names:
        return []
    folded = [(name, len(found)) for name, found in fold_names((name, None, name) for name in names)]
    if list_all:
        folded = [(name, 1) for name in names]
    lines = [f"  {label:<11} {len(names)} tensor{'s' * (len(names) != 1)}"]
    shown = folded if list_all else folded[:_MAX_NAMES]
    for name, count in shown:
        many = f"  x{count}" if count > 1 else ""
        room = len(name) if width is None else width - 14 - len(many)
        lines.append(" " * 14 + elide(printable(name), room) + many)
    if len(shown) < len(folded):
        lines.append(" " * 14 + f"and {len(folded) - len(shown)} more, which --all lists")
    return lines


def _kinds(tensors: Iterable[ComparedTensor], what: str, width: int | None) -> list[str]:
    """Tensors of other shapes or types, those of alike layers in one line."""
    folded = fold_names(
        (tensor.name, (tensor.shape, tensor.other_shape, tensor.dtype, tensor.other_dtype), tensor)
        for tensor in tensors
    )
    if not folded:
        return []
    rows = []
    for name, found in folded:
        first = found[0]
        here, there = first.dtype, first.other_dtype
        if what != "type":
            here, there = f"{shape_text(first.shape)} {here}", f"{shape_text(first.other_shape)} {there}"
        rows.append((name, here, there, f"x{len(found)}" if len(found) > 1 else ""))
    columns = (Column(f"other {what}", flexible=True), Column("here"), Column("there"), Column("count", right=True))
    return ["", *table(columns, rows, width)]


def _by_layer(tensors: Iterable[ComparedTensor]) -> list[tuple[str, list[ComparedTensor]]]:
    """The tensors of each layer; of those without a difference nothing."""
    blocks: dict[str, list[ComparedTensor]] = {}
    for tensor in tensors:
        blocks.setdefault(block_of(tensor.name), []).append(tensor)
    return [(block, found) for block, found in blocks.items() if any(tensor.differing for tensor in found)]


def _values(title: str, rows: Iterable[tuple[str, Sequence[ComparedTensor]]], width: int | None) -> list[str]:
    columns = (
        Column(title, flexible=True),
        Column("differ", right=True),
        Column("elements", right=True),
        Column("|delta|", right=True),
        Column("/ |first|", right=True),
        Column("largest", right=True),
        Column("NaN, Inf", right=True),
    )
    return table(columns, [_value_row(name, found) for name, found in rows], width)


def _value_row(name: str, tensors: Sequence[ComparedTensor]) -> tuple[str, ...]:
    """Sums over tensors: norms of several are those of all their elements together."""
    compared = [tensor for tensor in tensors if tensor.differing is not None]
    differing = sum(tensor.differing or 0 for tensor in compared)
    numbers = [tensor for tensor in compared if tensor.norm is not None]
    delta = _together(tensor.difference_norm for tensor in numbers)
    norm = _together(tensor.norm for tensor in numbers)
    nonfinite = sum(tensor.nonfinite for tensor in compared)
    share = differing / max(1, sum(tensor.elements for tensor in compared))
    count = sum(bool(tensor.differing) for tensor in compared)
    return (
        name,
        "" if len(tensors) == 1 else f"{count} of {len(tensors)}",
        percent(share),
        f"{delta:.3g}" if numbers else "",
        f"{delta / norm:.3g}" if norm else "",
        f"{max(tensor.largest_difference or 0.0 for tensor in numbers):.3g}" if numbers else "",
        str(nonfinite) if nonfinite else "",
    )


def _together(norms: Iterable[float | None]) -> float:
    return sum((norm or 0.0) ** 2 for norm in norms) ** 0.5
