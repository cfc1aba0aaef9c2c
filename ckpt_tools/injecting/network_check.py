"""`--check-network`: build the network that the run's YAML describes, compare it with the output, and load that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError, Problem, UsageError, VerificationError
from surgery.tuning import Tuning

__all__ = ["build_network", "compare_network", "load_into_network"]

_LISTED = 20


def build_network(tuning: Tuning) -> Any:
    """The network of a run, with its method.

    Raises:
        UsageError: The configuration describes no network.
        MissingExtraError: MindSpore is not installed.
    """
    if tuning.run is None:
        found = f"{tuning.source}, which describes no network"
        raise UsageError(Problem("--check-network", found, "a run's YAML with model.model_config and model.arch"))
    from surgery.network import get_pet_model

    return get_pet_model(None, tuning.run)


def compare_network(
    network: Any, tensors: Mapping[str, LazyTensor], kept: frozenset[str], *, only_delta: bool
) -> tuple[str, ...]:
    """Compare what is to be written with a network's parameters: names, order, shapes and types.

    Args:
        network: The network.
        tensors: What is to be written, whole and in order.
        kept: Names of the base's weights, whose types are the base's choice.
        only_delta: Whether the base's weights are left out.

    Returns:
        Warnings: where the base's types are not the network's.

    Raises:
        VerificationError: They differ.
    """
    from surgery.network.freezing import facts_of

    expected = {
        parameter.name: (tuple(parameter.shape), facts_of(parameter).dtype)
        for parameter in network.get_parameters()
        if not (only_delta and parameter.name in kept)
    }
    problems = [*_names("not in the output", [name for name in expected if name not in tensors])]
    problems += _names("not in the network", [name for name in tensors if name not in expected])
    types = []
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        shape, dtype = expected[name]
        if tensor.shape != shape:
            problems.append(Problem(name, f"shape {list(tensor.shape)}", f"{list(shape)}, as in the network"))
        if tensor.dtype.name != dtype and name in kept:
            types.append((name, tensor.dtype.name, dtype))
        elif tensor.dtype.name != dtype:
            remedy = "Set param_init_type in the YAML, or --dtype"
            problems.append(Problem(name, f"type {tensor.dtype}", f"{dtype}, as in the network", remedy))
    if not problems:
        problems += _order(list(tensors), list(expected))
    if problems:
        raise VerificationError(problems)
    if not types:
        return ()
    name, held, wanted = types[0]
    what = f"{len(types)} weights have another type than in the network, which casts them"
    return (f"{what}: {name} is {held}, not {wanted}",)


def load_into_network(network: Any, output: Path, strategy: Path | None) -> None:
    """Load an output into a network, strictly.

    Raises:
        VerificationError: It does not fit.
    """
    from surgery.network import load_ckpt

    try:
        load_ckpt(network, output, strategy=strategy)
    except MismatchError as error:
        raise VerificationError(error.problems) from error


def _names(where: str, names: Sequence[str]) -> list[Problem]:
    problems = [Problem(name, where, "the same parameters in both") for name in names[:_LISTED]]
    more = len(names) - _LISTED
    return [*problems, Problem("--check-network", f"{more} more {where}")] if more > 0 else problems


def _order(found: list[str], expected: list[str]) -> list[Problem]:
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            return [Problem(f"parameter {position}", one, f"{other}, as the network has them in order")]
    return []
