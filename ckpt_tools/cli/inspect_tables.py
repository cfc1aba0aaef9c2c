"""Tables of tensors, layouts, ranks and spectra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ckpt_tools.cli.common import printable
from ckpt_tools.cli.folding_names import fold_names, number_ranges
from ckpt_tools.cli.table import Column, shape_text, table
from ckpt_tools.reports import InspectedLayout, InspectedTensor, InspectReport
from ckpt_tools.sizes import format_size

__all__ = ["layout_lines", "rank_lines", "spectrum_lines", "tensor_lines"]

_MAX_DIFFERENCES = 20


def tensor_lines(report: InspectReport, width: int | None, *, list_all: bool) -> list[str]:
    """The tensors; those of alike layers in one line, and of optimizer states and scalars only with `list_all`."""
    columns = (
        Column("tensor", flexible=True),
        Column("shape"),
        Column("type"),
        Column("count", right=True),
        Column("bytes", right=True),
        Column("cut into"),
    )
    if list_all:
        rows = [_tensor_row(tensor.name, [tensor]) for tensor in report.tensors]
        return table(columns, rows, width)
    shown = [tensor for tensor in report.tensors if tensor.group not in ("optimizer", "scalar")]
    # Where nothing else is there, as with a filter, it is what the user wants to see.
    chosen = shown or [tensor for tensor in report.tensors if tensor.group != "scalar"] or list(report.tensors)
    folded = fold_names(
        (tensor.name, (tensor.shape, tensor.dtype, tensor.parts, tensor.role), tensor) for tensor in chosen
    )
    return table(columns, [_tensor_row(name, tensors) for name, tensors in folded], width)


def _tensor_row(name: str, tensors: Sequence[InspectedTensor]) -> tuple[str, ...]:
    first = tensors[0]
    count = f"x{len(tensors)}" if len(tensors) > 1 else ""
    nbytes = format_size(sum(tensor.nbytes for tensor in tensors))
    return name, shape_text(first.shape), first.dtype, count, nbytes, _parts(first.parts)


def _parts(parts: tuple[int, ...]) -> str:
    return " x ".join(map(str, parts)) if any(count > 1 for count in parts) else ""


def layout_lines(report: InspectReport, width: int | None, *, list_all: bool) -> list[str]:
    """The layouts of a strategy's parameters; those of alike layers and stages in one line."""
    columns = (
        Column("parameter", flexible=True),
        Column("stage"),
        Column("devices"),
        Column("tensor map"),
        Column("cut into"),
        Column("copies", right=True),
        Column("count", right=True),
    )
    if list_all:
        return table(columns, [_layout_row(layout.name, [layout], report.stages) for layout in report.layouts], width)
    states = ("adam_m.", "adam_v.", "accu_grads.")
    own = [layout for layout in report.layouts if not layout.name.startswith(states)] or list(report.layouts)
    folded = fold_names(
        (
            layout.name,
            (layout.device_matrix, layout.tensor_map, layout.parts, layout.optimizer_shards, layout.stage),
            layout,
        )
        for layout in own
    )
    lines = table(columns, [_layout_row(name, layouts, report.stages) for name, layouts in folded], width)
    cuts = Counter(_parts(layout.parts) or ("whole" if layout.parts else "by the shape") for layout in report.layouts)
    lines.append("")
    lines += table(
        (Column("cut into"), Column("parameters", right=True)),
        [(cut, str(count)) for cut, count in cuts.most_common()],
        width,
    )
    return lines


def _layout_row(name: str, layouts: Sequence[InspectedLayout], stages: int) -> tuple[str, ...]:
    first = layouts[0]
    axes = [", ".join(map(str, cuts)) if cuts else "-" for cuts in first.tensor_map]
    tensor_map = " | ".join(axes)
    shards = first.optimizer_shards
    if shards:
        tensor_map += " +all" if shards < 0 else f" +{shards}"
    return (
        name,
        str(first.stage) if stages > 1 else "",
        " x ".join(map(str, first.device_matrix)),
        tensor_map,
        _parts(first.parts) or ("whole" if first.parts else ""),
        str(first.replicas) if first.replicas else "",
        f"x{len(layouts)}" if len(layouts) > 1 else "",
    )


def rank_lines(report: InspectReport, width: int | None) -> list[str]:
    """Which ranks hold what, where they do not all hold the same."""
    groups = report.rank_groups
    if len(groups) < 2:
        return []
    rows = [
        (
            number_ranges(group.ranks),
            str(group.tensors),
            format_size(group.nbytes),
            ", ".join(name for name, _ in fold_names((name, None, name) for name in group.own)),
        )
        for group in groups
    ]
    columns = (
        Column("ranks"),
        Column("tensors", right=True),
        Column("bytes each", right=True),
        Column("not on all", flexible=True),
    )
    lines = table(columns, rows, width)
    if report.rank_differences:
        lines.append("")
        shown = report.rank_differences[:_MAX_DIFFERENCES]
        heads = [Column("on ranks, shape and type", flexible=True)]
        heads += [Column(number_ranges(group.ranks)) for group in groups]
        cells = [
            (
                other.name,
                *(
                    f"{shape_text(shape)} {dtype}" if dtype else "-"
                    for shape, dtype in zip(other.shapes, other.dtypes, strict=True)
                ),
            )
            for other in shown
        ]
        lines += table(heads, cells, width)
        if len(report.rank_differences) > len(shown):
            lines.append(f"  and {len(report.rank_differences) - len(shown)} more, which --json has")
    return lines


def spectrum_lines(report: InspectReport, width: int | None) -> list[str]:
    """What each adapted layer's scaling * B @ A is made of."""
    rows = []
    for pair in report.pairs:
        spectrum = pair.spectrum
        if spectrum is None:
            continue
        ninety = 1 + next((number for number, share in enumerate(spectrum.energy) if share >= 0.9), 0)
        rows.append(
            (
                pair.layer,
                str(pair.rank),
                f"{spectrum.scaling:g}" + ("" if pair.scaling is not None else " ?"),
                f"{spectrum.norm:.3g}",
                f"{max(spectrum.singular_values, default=0.0):.3g}",
                f"{spectrum.effective_rank:.2f}",
                f"{ninety}" if spectrum.energy else "",
            )
        )
    columns = (
        Column("adapted layer", flexible=True),
        Column("rank", right=True),
        Column("scale", right=True),
        Column("norm", right=True),
        Column("largest", right=True),
        Column("eff.", right=True),
        Column("90%", right=True),
    )
    return [printable(line) for line in table(columns, rows, width)]
