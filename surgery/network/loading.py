"""Load checkpoints into networks, strictly: what is missing, unexpected or of another shape is an error.

`mindspore.load_param_into_net` only warns of what it does not load.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tools.distributed import open_whole
from ckpt_tools.layout import read_strategy
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError, Problem
from surgery.naming import ParameterName, Role, classify
from surgery.near import near_names
from surgery.network.arrays import dtype_of, set_values
from surgery.network.packages import Cell
from surgery.translation import naming_of, to_mindformers

__all__ = ["LoadReport", "load_ckpt"]

_STATES = (Role.OPTIMIZER, Role.SCALAR, Role.TRAINING_AID, Role.SUPERSEDED)
_LISTED = 20


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a checkpoint gave to a network.

    Attributes:
        source: The checkpoint.
        loaded: Names of parameters that have its values.
        kept: Names of parameters that it says nothing of, which keep their values: the network's own weights for an
            adapter's checkpoint, a fresh adapter's parameters for one of a network that was not tuned.
        dropped: Names in the checkpoint that are of the training only.
        cast: Names of parameters whose values were rounded to the network's type.
    """

    source: Path
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    cast: tuple[str, ...]


def load_ckpt(
    network: Cell,
    path: str | os.PathLike[str],
    *,
    strategy: str | os.PathLike[str] | None = None,
    names: Mapping[str, str] | None = None,
) -> LoadReport:
    """Load a checkpoint into a network: a whole one, an adapter's alone, or one of both.

    Args:
        network: The network; changed in place, and only where everything fits.
        path: A file, a folder of shards, a PEFT folder, folders of ranks or Checkpoint 2.0.
        strategy: How the files of ranks are cut.
        names: Names in the checkpoint to names in the network, where these differ by more than the families of
            adapters' names and Hugging Face's of LLaMA.

    Returns:
        What was loaded.

    Raises:
        MismatchError: Parameters of the network are missing in the checkpoint, or of another shape there; the
            checkpoint has tensors that the network does not, or two for one parameter.
    """
    read = open_whole(Path(path), None if strategy is None else read_strategy(Path(strategy)), option="strategy")
    tensors = read.base.tensors
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    sources, dropped = _by_network_name(tensors, parameters, names or {})
    found = {name: tensors[keys[0]] for name, keys in sources.items()}
    problems = [
        Problem(f"{path}: {' and '.join(keys)}", f"all of them are {name}", "one tensor for a parameter")
        for name, keys in sources.items()
        if len(keys) > 1
    ]
    problems += _problems_of(str(path), found, parameters)
    if problems:
        raise MismatchError(problems)
    cast = [name for name, tensor in found.items() if tensor.dtype != dtype_of(parameters[name])]
    for name, tensor in found.items():
        set_values(parameters[name], tensor.read_all())
    kept = tuple(name for name in parameters if name not in found)
    return LoadReport(Path(path), tuple(found), kept, tuple(dropped), tuple(cast))


def _by_network_name(
    tensors: Mapping[str, LazyTensor], parameters: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The network's names to those of the checkpoint's tensors, and the names of what is of the training only."""
    adapted: dict[tuple[Role, str], str] = {
        (name.role, name.layer): name.name for name in map(classify, parameters) if name.role is not Role.WEIGHT
    }
    translates = naming_of(tensors) == "huggingface" and naming_of(parameters) == "mindformers"
    found: dict[str, list[str]] = {}
    dropped = []
    for key in tensors:
        parameter = classify(key, tensors)
        if parameter.role in _STATES and key not in parameters:
            dropped.append(key)
            continue
        name = _name_in_network(parameter, parameters, adapted, names, translates=translates)
        found.setdefault(name, []).append(key)
    return found, dropped


def _name_in_network(
    parameter: ParameterName,
    parameters: Mapping[str, Any],
    adapted: Mapping[tuple[Role, str], str],
    names: Mapping[str, str],
    *,
    translates: bool,
) -> str:
    key = parameter.name
    if key in names:
        return names[key]
    if key in parameters:
        return key
    if parameter.role in (Role.LORA_A, Role.LORA_B):
        layer = to_mindformers(parameter.layer) if translates or parameter.family == "peft" else parameter.layer
        for candidate in (layer, parameter.layer):
            if (parameter.role, candidate) in adapted:
                return adapted[parameter.role, candidate]
        return key
    if parameter.base and parameter.base in parameters:
        return parameter.base
    return to_mindformers(parameter.base or key) if translates else key


def _problems_of(source: str, found: Mapping[str, LazyTensor], parameters: Mapping[str, Any]) -> Iterator[Problem]:
    unexpected = [name for name in found if name not in parameters]
    for name in unexpected[:_LISTED]:
        near = near_names(name, (other for other in parameters if other not in found))
        remedy = f"Did you mean {near[0]}?" if near else ""
        yield Problem(f"{source}: {name}", "unexpected: the network has no such parameter", remedy=remedy)
    expected = _expected(found, parameters)
    missing = [name for name in parameters if name in expected and name not in found]
    for name in missing[:_LISTED]:
        yield Problem(source, f"no {name}", f"a tensor of {tuple(parameters[name].shape)}")
    for kind, names in (("unexpected", unexpected), ("missing", missing)):
        if len(names) > _LISTED:
            yield Problem(source, f"{len(names) - _LISTED} more {kind} names")
    for name, tensor in found.items():
        if name in parameters and tensor.shape != tuple(parameters[name].shape):
            yield Problem(f"{source}: {name}", f"shape {tensor.shape}", f"shape {tuple(parameters[name].shape)}")
    if not found:
        yield Problem(source, "no tensor of the network at all", "a checkpoint of it or of its adapter")


def _expected(found: Mapping[str, LazyTensor], parameters: Mapping[str, Any]) -> set[str]:
    """What a checkpoint has to have: a network's weights, or what tuning trains, or both, as it has of them."""
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    weights = {name for name in parameters if classify(name).role is Role.WEIGHT}
    known = found.keys() & parameters.keys()
    if known and known <= trained and not weights <= trained:
        return trained
    expected = set(weights) if known & weights else set()
    return expected | (trained - weights) if known - weights else expected
