"""What every PET method has: a configuration, the parameters that it adds, and what it trains.

A method is described once, without a framework: networks (`surgery.network`) and checkpoints are changed by the same
description. Shapes of linear layers are `(out, in)`, element types are named as in this project's reports (`fp32`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from surgery.options import Options

__all__ = [
    "Initialiser",
    "LayerKind",
    "LayerPetConfig",
    "Method",
    "NetworkShape",
    "NewParameter",
    "PetConfig",
    "Rule",
    "Side",
    "Target",
    "TargetLayer",
    "option",
]

Rule = Callable[[Options, str], Any]
"""Reads the option of a name, and reports to the options what is wrong with it."""


class Target(Enum):
    """What a method changes of a network."""

    LAYERS = "linear layers"
    ATTENTION = "the keys and values of every attention"
    BIASES = "biases that the network has"


class Side(Enum):
    """What of a linear layer an axis of a new parameter lies along, and so how it is cut over devices."""

    NONE = "neither"
    INPUT = "input"
    OUTPUT = "output"


class LayerKind(Enum):
    """How a linear layer holds its weight."""

    DENSE = "dense"  # (out, in): `nn.Dense`, and MindFormers' `Linear`
    COLUMN_PARALLEL = "column parallel"  # MindFormers' parallel core
    ROW_PARALLEL = "row parallel"


@dataclass(frozen=True, slots=True)
class Initialiser:
    """The values that a parameter begins with.

    Attributes:
        kind: `zeros`, `ones`, `normal`, `uniform`, `he_uniform`, `xavier_uniform` or `arange`.
        scale: The standard deviation of `normal`; the bound of `uniform` on both sides of 0; the negative slope of
            `he_uniform` (He et al., arXiv:1502.01852).
    """

    kind: str
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class NewParameter:
    """A parameter that a method adds.

    Attributes:
        name: As MindFormers names it in a network.
        shape: Its shape.
        dtype: Its element type, such as `fp32`.
        initialiser: What it begins with.
        is_trained: Whether training changes it.
        sides: For each axis, what of its layer it lies along: an axis is cut over devices as that is. Empty for a
            parameter that every device holds whole.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    initialiser: Initialiser
    is_trained: bool = True
    sides: tuple[Side, ...] = ()

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """A linear layer that a method changes.

    Attributes:
        name: The layer, as its weight's name has it: without `.weight`; empty where the weight is the whole network's.
        in_channels: The width of its input.
        out_channels: The width of its output.
        dtype: The element type of its weight.
        kind: How it holds its weight.
    """

    name: str
    in_channels: int
    out_channels: int
    dtype: str = "fp32"
    kind: LayerKind = LayerKind.DENSE

    def parameter(self, leaf: str) -> str:
        """The name of a parameter of this layer."""
        return f"{self.name}.{leaf}" if self.name else leaf


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What a prefix has to fit.

    Attributes:
        num_layers: Layers with an attention.
        num_heads: Heads of keys and values; fewer than those of queries with grouped-query attention.
        kv_channels: The width of a head.
    """

    num_layers: int
    num_heads: int
    kv_channels: int

    @property
    def prefix_width(self) -> int:
        """Numbers that a token of the prefix has: a key and a value for each head of each layer."""
        return 2 * self.num_layers * self.num_heads * self.kv_channels


def option(default: Any, rule: Rule, *, spellings: tuple[str, ...] = ()) -> Any:
    """A field of a configuration.

    Args:
        default: MindFormers' or MindPet's default.
        rule: How its value is read and checked.
        spellings: Other names under which it may be given.
    """
    return field(default=default, metadata={"rule": rule, "spellings": spellings})


def _globs(options: Options, name: str) -> tuple[str, ...] | None:
    return options.names(name) or None


def _expression(options: Options, name: str) -> str | None:
    """MindFormers takes one regular expression; a list is one of alternatives."""
    value = options.names_or_expression(name)
    if not isinstance(value, tuple):
        return value or None
    joined = "|".join(value)
    options.expression(name, joined)
    return joined or None


def _expressions(options: Options, name: str) -> tuple[str, ...] | None:
    value = options.names_or_expression(name)
    patterns = (value,) if isinstance(value, str) else value or ()
    for pattern in patterns:
        options.expression(name, pattern)
    return patterns or None


_ELEMENT_TYPES = ("float32", "float16", "bfloat16")
_TYPES_IN_REPORTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_PREFIX_OF_TYPES = re.compile(r"^(?:mindspore|mstype|ms)\.")


def _element_type(options: Options, name: str) -> str | None:
    """An element type by MindSpore's name; MindSpore's own type answers to its name too."""
    value = options.values.get(name)
    if value is None:
        return None
    text = _PREFIX_OF_TYPES.sub("", str(value)).lower()
    if text in _ELEMENT_TYPES:
        return text
    options.refuse(name, " or ".join(_ELEMENT_TYPES))
    return None


@dataclass(frozen=True, slots=True)
class PetConfig:
    """What every method's configuration has. Values are checked when it is made.

    Attributes:
        freeze_include: Globs of parameters to freeze besides those that the method freezes.
        freeze_exclude: Globs of parameters to train besides those that the method trains.
        ignored: Keys of MindFormers' files that say what the network says itself.
    """

    pet_type: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()

    freeze_include: tuple[str, ...] | None = option(None, _globs)
    freeze_exclude: tuple[str, ...] | None = option(None, _globs)

    def __post_init__(self) -> None:
        options = Options(type(self).__name__, {entry.name: getattr(self, entry.name) for entry in fields(self)})
        for entry in fields(self):
            value = entry.metadata["rule"](options, entry.name)
            object.__setattr__(self, entry.name, entry.default if value is None else value)
        options.check()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and may disappoint."""
        return ()


@dataclass(frozen=True, slots=True)
class LayerPetConfig(PetConfig):
    """What the methods have that change linear layers.

    Attributes:
        target_modules: The layers to change; see `surgery.cell_rules`. `reg_rules` is the name that the design
            document gives it.
        exclude_layers: Regular expressions of cells to leave as they are, with all that is in them.
        param_init_type: The element type of new parameters, by MindSpore's name; None: the layer's.
        compute_dtype: The type to compute in; None: the layer's.
    """

    target_modules: str | None = option(None, _expression, spellings=("reg_rules",))
    exclude_layers: tuple[str, ...] | None = option(None, _expressions)
    param_init_type: str | None = option(None, _element_type)
    compute_dtype: str | None = option(None, _element_type)

    def dtype_of(self, layer: TargetLayer) -> str:
        """The element type of what is added to a layer, such as `fp32`."""
        return layer.dtype if self.param_init_type is None else _TYPES_IN_REPORTS[self.param_init_type]


AddParameters = Callable[[Any, Sequence[TargetLayer], "NetworkShape | None"], tuple[NewParameter, ...]]


@dataclass(frozen=True, slots=True)
class Method:
    """A PET method.

    Attributes:
        pet_type: MindFormers' name for it.
        title: What messages call it.
        config: Its configuration.
        target: What it changes of a network.
        add_parameters: The parameters that it adds, of the configuration, the layers that it changes and the network's
            shape; a prefix needs the last, what changes layers does not.
        trained: Globs of the names that it trains.
        folds: Whether what it trained can be folded into weights that the network has.
        cannot_fold: Why not.
    """

    pet_type: str
    title: str
    config: type[PetConfig]
    target: Target
    add_parameters: AddParameters
    trained: tuple[str, ...]
    folds: bool = False
    cannot_fold: str = ""

    def trains(self, name: str) -> bool:
        """Whether the method trains a parameter of this name."""
        return any(fnmatchcase(name, pattern) for pattern in self.trained)
