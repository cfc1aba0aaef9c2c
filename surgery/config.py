"""What a LoRA adapter's configuration says, whatever file it was read from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from surgery.errors import MismatchError, Problem
from surgery.expressions import match
from surgery.scaling import lora_scaling

__all__ = ["LAYER_INDEX_PATTERN", "LAYER_PATTERN", "SAVED_MODULE_PATTERN", "LoraConfig", "Selection"]

# How PEFT uses the expressions of a configuration, with `{}` for what the configuration says.
LAYER_PATTERN = r"(.*\.)?({})$"
LAYER_INDEX_PATTERN = r"(?:^|.*?\.){}\.(?P<index>\d+)\."
SAVED_MODULE_PATTERN = r"(^|.*\.){}($|\..*)"


class Selection(Enum):
    """How `target_modules` chooses layers; see `surgery.targets`."""

    PEFT = "PEFT"
    MINDFORMERS = "MindFormers"  # re.match on the cell's own name
    MINDFORMERS_PYNATIVE = "MindFormers PyNative"  # re.search in the cell's path


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """A LoRA configuration.

    Attributes:
        source: The file it was read from, or what else the user gave.
        rank: The rank of every layer that `rank_pattern` does not name; None where the file has none.
        alpha: The same for alpha; no checkpoint has it, so None means that it is unknown.
        use_rslora: Whether the scale is alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732) and not alpha / rank.
        use_dora: Whether the magnitude is a parameter of its own (Liu et al., arXiv:2402.09353).
        fan_in_fan_out: Whether the adapted weights are (in, out), as GPT-2's Conv1D has them.
        rank_pattern: Name or regular expression to rank, in the file's order: the first that matches counts.
        alpha_pattern: The same for alpha.
        bias: Which biases were trained and saved: `none`, `all` or `lora_only`.
        lora_bias: Whether B has a bias.
        modules_to_save: Modules that were trained whole.
        target_modules: Names, a regular expression, `all-linear`, or None where the file has none.
        exclude_modules: The same, of what is left out.
        layers_to_transform: Indices of the layers that `target_modules` is limited to.
        layers_pattern: Names of the module lists that those indices count in.
        ensure_weight_tying: Whether a layer that is tied to a selected one has the same adapter.
        selection: How the layers are selected by the options above.
        base_model_name: What the file calls the base; empty where it does not.
        base_fingerprint: The fingerprint of the base that the adapter belongs to; empty where the file has none.
    """

    source: str
    rank: int | None = None
    alpha: float | None = None
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    bias: str = "none"
    lora_bias: bool = False
    modules_to_save: tuple[str, ...] = ()
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    ensure_weight_tying: bool = False
    selection: Selection = Selection.PEFT
    base_model_name: str = ""
    base_fingerprint: str = ""

    def rank_of(self, layer: str) -> int | None:
        """The rank that the configuration gives a layer; the shapes have the last word."""
        key = _pattern_of(self.rank_pattern, layer)
        return self.rank if key is None else self.rank_pattern[key]

    def alpha_of(self, layer: str) -> float | None:
        """The alpha of a layer; None where the file has none."""
        key = _pattern_of(self.alpha_pattern, layer)
        return self.alpha if key is None else self.alpha_pattern[key]

    def saves_module(self, layer: str) -> bool:
        """Whether `modules_to_save` made a copy of a module, or of one that it is in, for the training.

        PEFT compares the ends of module names, not whole components.
        """
        components = layer.split(".")
        paths = [".".join(components[:depth]) for depth in range(1, len(components) + 1)]
        return any(path.endswith(self.modules_to_save) for path in paths)

    def scaling(self, layer: str, rank: int | None = None) -> float:
        """The factor of a layer's B @ A: alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA.

        Args:
            layer: The module, as the base model names it.
            rank: The rank that the shapes show; the configuration's where it is None.

        Raises:
            MismatchError: Alpha is unknown, 0 or not finite; the rank is unknown or not positive; or the
                configuration's rank is not that of the shapes.
        """
        where = f"{self.source}, layer {layer}" if layer else self.source
        alpha, configured = self.alpha_of(layer), self.rank_of(layer)
        if rank is not None and configured is not None and configured != rank:
            raise MismatchError(
                Problem(
                    where,
                    f"rank {configured}",
                    f"rank {rank}, as the shapes of A and B have it",
                    "The configuration belongs to another adapter: give the right one, or the scale itself",
                )
            )
        used = configured if rank is None else rank
        if used is None or used <= 0:
            raise MismatchError(Problem(where, f"rank {used}", "a positive rank"))
        if alpha is None:
            raise MismatchError(
                Problem(where, "no alpha", "alpha, on which the scale depends", "Give it on the command line")
            )
        if alpha == 0 or not math.isfinite(alpha):
            raise MismatchError(
                Problem(where, f"alpha {alpha:g}", "a finite alpha other than 0", "Give the alpha of the training")
            )
        return lora_scaling(alpha, used, use_rslora=self.use_rslora)


def _pattern_of(patterns: Iterable[str], layer: str) -> str | None:
    """The first pattern that matches a layer, as PEFT's `get_pattern_key` finds it.

    A pattern is a regular expression that must match the layer's name from some dot on, or from its beginning, to its
    end: `q_proj`, `layers.1.mlp`, `^model.layers.0.self_attn.q_proj`.
    """
    for pattern in patterns:
        # Extracting a LoRA by energy gives each layer a pattern, which is its name: to compile all of them takes hours.
        is_match = _ends_with if _is_plain(pattern) and "\n" not in layer else _matches
        if is_match(layer, pattern):
            return pattern
    return None


def _matches(layer: str, pattern: str) -> bool:
    return match(LAYER_PATTERN.replace("{}", pattern), layer) is not None


@lru_cache(maxsize=2**17)
def _is_plain(pattern: str) -> bool:
    """Whether the only sign of regular expressions in a pattern is the dot."""
    return re.fullmatch(r"[\w.-]+", pattern) is not None


def _ends_with(layer: str, pattern: str) -> bool:
    """What `_matches` says of a plain pattern; its dots stand for any character."""
    start = len(layer) - len(pattern)
    if start < 0 or (start > 0 and layer[start - 1] != "."):
        return False
    end = layer[start:]
    if pattern.count(".") <= end.count("."):  # else one of its dots may stand for another character
        return end == pattern
    return all(sign in (".", own) for sign, own in zip(pattern, end, strict=True))
