"""Which layers a network has, as far as the names, shapes and types of its parameters show it.

A cell is a name in front of a parameter's last component. It is a linear layer if it holds a `weight` of two axes and
of a floating-point type, has no other cells with parameters in it, and is not called as embeddings or routers are. A
network may call a linear layer so, or hold another kind of layer with such a weight: only the network itself can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from surgery.cell_rules import BODIES, CellFacts
from surgery.errors import MismatchError, Problem
from surgery.methods import LayerKind, TargetLayer

__all__ = ["Recognised", "TensorFacts", "body_of", "count_layers", "recognise_layers"]

_FLOATS = frozenset({"fp16", "bf16", "fp32", "fp64"})

# Of PyTorch's and MindFormers' networks; `embed_out` is GPT-NeoX's head, which is linear.
_EMBEDDING = re.compile(r"(?:.*_)?embeddings?(?:_table)?|embed_(?:tokens|positions|in)|w[tp]e|shared", re.IGNORECASE)

# MindFormers' parallel core has the weight in the router itself; elsewhere a linear layer in the router has it.
_ROUTER = "router"

# MindFormers' parallel core, whose layers keep LoRA under names of their own.
_PARALLEL_CORE = re.compile(
    r"(?:.*\.)?(?:decoder\.layers\.\d+\.(?:self_attention|cross_attention|mlp)(?:\.shared_experts)?\.\w+|output_layer)"
)
_DECODER = re.compile(r"(?:.*\.)?decoder\.layers\.\d+\.")
_ROW_PARALLEL = frozenset({"linear_proj", "linear_fc2"})

# Networks have some ten cells within each other. The time grows with the cube of it, and a name may have 64 KiB.
_MAX_DEPTH = 100

_NUMBERED = re.compile(r"(?P<list>(?:.*?\.)?(?:layers?|blocks?|h))\.(?P<number>\d+)\.")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A parameter's shape and its element type, such as `bf16`."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Recognised:
    """The cells of a network.

    Attributes:
        cells: All that have parameters, each behind the one that it is in.
        layers: The linear ones, by their path.
        parameters: For each of these the names of its parameters, in order.
    """

    cells: tuple[CellFacts, ...]
    layers: Mapping[str, TargetLayer]
    parameters: Mapping[str, tuple[str, ...]]


def recognise_layers(tensors: Mapping[str, TensorFacts]) -> Recognised:
    """Find the linear layers of a network.

    Args:
        tensors: Its parameters, in order.

    Raises:
        MismatchError: A name has more components than a network has cells within each other.
    """
    deep = next((name for name in tensors if name.count(".") > _MAX_DEPTH), None)
    if deep is not None:
        raise MismatchError(Problem(deep, f"{deep.count('.')} cells within each other", f"{_MAX_DEPTH} at most"))
    own: dict[str, list[str]] = {}
    containers: set[str] = set()
    for name in tensors:
        components = name.split(".")
        for depth in range(1, len(components)):
            own.setdefault(".".join(components[:depth]), [])
        containers.update(".".join(components[:depth]) for depth in range(1, len(components) - 1))
        if len(components) > 1:
            own[".".join(components[:-1])].append(name)
    has_core = any(_DECODER.match(name) for name in tensors)
    cells, layers = [], {}
    for path, names in own.items():
        obstacle = _obstacle(path, names, tensors, is_container=path in containers)
        cells.append(CellFacts(path, obstacle))
        if not obstacle:
            layers[path] = _layer(path, tensors, has_core=has_core)
    return Recognised(tuple(cells), layers, {path: tuple(own[path]) for path in layers})


def body_of(names: Iterable[str]) -> str:
    """The attribute of a network from which MindFormers' rules begin; empty where there is none."""
    firsts = {name.partition(".")[0] for name in names if "." in name}
    return next((body for body in BODIES if body in firsts), "")


def count_layers(names: Iterable[str]) -> int:
    """How many blocks a network repeats; 0 where no name shows it."""
    found: dict[str, set[str]] = {}
    for name in names:
        match = _NUMBERED.match(name)
        if match:
            found.setdefault(match["list"], set()).add(match["number"])
    return max(map(len, found.values()), default=0)


def _obstacle(path: str, names: list[str], tensors: Mapping[str, TensorFacts], *, is_container: bool) -> str:
    """Why a cell is no linear layer; empty where it is one."""
    weight = tensors.get(f"{path}.weight")
    if is_container:
        return "a cell with others in it, which is no linear layer"
    if weight is None:
        return f"a layer without a weight ({', '.join(name.rpartition('.')[2] for name in names)})"
    axes = len(weight.shape)
    if axes != 2:
        return f"a layer whose weight has {axes} {'axis' if axes == 1 else 'axes'}, which is no linear layer"
    if weight.dtype not in _FLOATS:
        return f"a layer with a weight of {weight.dtype}, which is quantised"
    name = path.rpartition(".")[2]
    if _EMBEDDING.fullmatch(name):
        return "an embedding by its name, which is no linear layer"
    if name == _ROUTER:
        return "a router of experts by its name, which is no linear layer"
    return ""


def _layer(path: str, tensors: Mapping[str, TensorFacts], *, has_core: bool) -> TargetLayer:
    weight = tensors[f"{path}.weight"]
    out, into = weight.shape
    bias = tensors.get(f"{path}.bias")
    if bias is not None and bias.shape == (into,) != (out,):
        out, into = into, out  # of (in, out), as GPT-2's are
    kind = LayerKind.DENSE
    if has_core and _PARALLEL_CORE.fullmatch(path):
        is_row = path.rpartition(".")[2] in _ROW_PARALLEL
        kind = LayerKind.ROW_PARALLEL if is_row else LayerKind.COLUMN_PARALLEL
    return TargetLayer(path, into, out, weight.dtype, kind)
