"""Which layers of a base a configuration changes: by MindFormers' rules on cells, or by PEFT's on modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_tools.reports import NearMiss
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.cell_rules import DEFAULT_TARGETS, CellRule, is_on_paths, select_cells
from surgery.config import LoraConfig
from surgery.errors import MismatchError, Problem
from surgery.expressions import match, search
from surgery.methods import LayerPetConfig, TargetLayer
from surgery.near import near_names
from surgery.recognition import Recognised, TensorFacts, body_of, recognise_layers
from surgery.targets import selects
from surgery.translation import naming_of, to_huggingface
from surgery.tuning import Tuning

__all__ = ["Selection", "select_layers"]

_OUTPUT_HEADS = frozenset({"lm_head", "output_layer", "embed_out"})
_SHOWN = 8
_MINDFORMERS_CELL = re.compile(r"(?<![a-z])w[qkvo123](?![a-z])")


@dataclass(frozen=True, slots=True)
class Selection:
    """The layers of a base that are changed.

    Attributes:
        layers: What is changed, in the base's order.
        own: For each of them, by name, the base's parameters of it, in order.
        near_misses: What nearly was.
    """

    layers: tuple[TargetLayer, ...]
    own: Mapping[str, tuple[str, ...]]
    near_misses: tuple[NearMiss, ...]


def select_layers(tuning: Tuning, weights: Mapping[str, LazyTensor]) -> Selection:
    """The layers that a configuration changes.

    Args:
        tuning: The configuration.
        weights: The base's weights, in order.

    Raises:
        MismatchError: It selects none; the message has near names.
    """
    if not isinstance(tuning.config, LayerPetConfig):
        return Selection((), {}, ())
    known = recognise_layers({name: TensorFacts(one.shape, one.dtype.name) for name, one in weights.items()})
    if tuning.peft is not None:
        paths, misses = _by_peft(tuning.peft, known, weights)
    else:
        paths, misses = _by_mindformers(tuning.config, known, weights)
    dtype = tuning.param_init_type()
    layers = tuple(known.layers[path] if dtype is None else replace(known.layers[path], dtype=dtype) for path in paths)
    return Selection(layers, {path: known.parameters[path] for path in paths}, tuple(misses))


def _by_mindformers(
    config: LayerPetConfig, known: Recognised, weights: Mapping[str, LazyTensor]
) -> tuple[list[str], list[NearMiss]]:
    rule = CellRule(config.target_modules or DEFAULT_TARGETS, config.exclude_layers or ())
    try:
        selected = select_cells(rule, known.cells, body=body_of(weights))
    except MismatchError as error:
        raise MismatchError([*error.problems, *_other_names(rule.target, weights)]) from None
    skipped = [NearMiss(cell.path, cell.reason) for cell in selected.skipped]
    return list(selected.paths), [*skipped, *_one_letter_off(rule, known, set(selected.paths), skipped)]


def _other_names(target: str, weights: Mapping[str, LazyTensor]) -> list[Problem]:
    """A hint, where a rule speaks of LLaMA's layers as MindFormers calls them and the base of Hugging Face's."""
    if naming_of(weights) != "huggingface":
        return []
    if not _MINDFORMERS_CELL.search(target):
        return []
    found, expected = "names of Hugging Face's", "those of MindFormers, of which target_modules speaks"
    return [Problem("the base", found, expected, "Give --names mindformers")]


def _one_letter_off(rule: CellRule, known: Recognised, selected: set[str], skipped: list[NearMiss]) -> list[NearMiss]:
    """Linear layers that the expression would match anywhere in the name, or in another case, and does not as it is."""
    if is_on_paths(rule.target):
        return []
    told = {miss.layer for miss in skipped}
    misses = []
    for path in known.layers:
        name = path.rpartition(".")[2]
        if path in selected or path in told or match(rule.target, name):
            continue
        if search(rule.target, name, re.IGNORECASE):
            misses.append(NearMiss(path, f"{rule.target!r} is in its name, but does not match from its beginning"))
    return misses


def _by_peft(
    config: LoraConfig, known: Recognised, weights: Mapping[str, LazyTensor]
) -> tuple[list[str], list[NearMiss]]:
    """By PEFT's rules on the names as they are, or else, for MindFormers' LLaMA, as Hugging Face has them."""
    spellings = [{path: path for path in known.layers}]
    if naming_of(weights) == "mindformers":
        spellings.append({path: to_huggingface(f"{path}.weight").removesuffix(".weight") for path in known.layers})
    misses: list[NearMiss] = []
    for spelled in spellings:
        verdicts = {
            path: selects(config, name, is_output_head=path.rpartition(".")[2] in _OUTPUT_HEADS)
            for path, name in spelled.items()
        }
        if any(verdicts.values()):
            misses = [
                NearMiss(path, verdict.reason)
                for path, verdict in verdicts.items()
                if not verdict and not verdict.reason.startswith("is not among target_modules")
            ]
            return [path for path, verdict in verdicts.items() if verdict], misses + _no_linear(config, known)
    raise MismatchError(_nothing_selected(config, list(spellings[-1].values())))


def _no_linear(config: LoraConfig, known: Recognised) -> list[NearMiss]:
    """What the configuration names although it is no linear layer, as embeddings, which MindFormers does not adapt."""
    return [
        NearMiss(cell.path, f"is {cell.obstacle}")
        for cell in known.cells
        if cell.obstacle and config.target_modules != "all-linear" and selects(config, cell.path)
    ]


def _nothing_selected(config: LoraConfig, layers: list[str]) -> Problem:
    wanted = config.target_modules
    words = [wanted] if isinstance(wanted, str) else list(wanted or ())
    names = list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    near = list(dict.fromkeys(name for word in words for name in near_names(word.rpartition(".")[2], names, n=2)))
    listed = ", ".join((near or names)[:_SHOWN])
    remedy = f"{'Near names' if near else 'Linear layers'}: {listed}" if listed else ""
    return Problem(f"{config.source}: target_modules", f"{wanted!r} selects no linear layer", remedy=remedy)
