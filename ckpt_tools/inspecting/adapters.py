"""The adapters in a checkpoint: pairs of A and B, their alpha as pet-merge finds it, and what B @ A is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ckpt_tools.formats import Checkpoint
from ckpt_tools.merging.adapters import ScaleOption, find_configuration
from ckpt_tools.progress import Progress
from ckpt_tools.reports import InspectedFamily, InspectedPair, InspectedTensor, Spectrum
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.adapter_facts import METADATA_FINGERPRINT
from surgery.config import LoraConfig
from surgery.errors import MismatchError, PetSurgeryError
from surgery.grouping import LoraPair, group_lora
from surgery.lowrank import effective_rank, energy_by_rank, lora_singular_values

__all__ = ["InspectedAdapters", "find_adapters", "with_spectra"]

_MAX_TOLD = 5
_MAX_PLACES = 3


@dataclass(frozen=True, slots=True)
class InspectedAdapters:
    """What a checkpoint holds of adapters.

    Attributes:
        families: Parameters by method and spelling.
        pairs: LoRA's pairs.
        base_fingerprint: That of the base, where the file or the configuration has it.
        warnings: What is odd, a sentence each.
    """

    families: tuple[InspectedFamily, ...] = ()
    pairs: tuple[InspectedPair, ...] = ()
    base_fingerprint: str = ""
    warnings: tuple[str, ...] = ()


def find_adapters(
    checkpoint: Checkpoint,
    tensors: Sequence[InspectedTensor],
    config: Path | None,
    selects: Callable[[str], bool],
    *,
    sliced: bool,
) -> InspectedAdapters:
    """Pair what is LoRA, and count what is of other methods.

    Args:
        checkpoint: The checkpoint, whole or the slices of a rank.
        tensors: Its tensors that are of interest.
        config: A configuration to read; None for the one that is found beside the checkpoint.
        selects: Whether a name is of interest.
        sliced: Whether it is slices, whose A and B need not fit.

    Raises:
        PetSurgeryError: The named configuration is missing or broken.
    """
    said = checkpoint.metadata.get(METADATA_FINGERPRINT, "")
    adapted = [tensor for tensor in tensors if tensor.group == "adapter"]
    if not adapted:
        return InspectedAdapters(base_fingerprint=said)
    group = group_lora(checkpoint.tensors, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    chosen = [pair for pair in group.pairs if selects(pair.a) or selects(pair.b)]
    found: LoraConfig | None = None
    warnings: list[str] = []
    if chosen or config is not None:
        found, warnings = _configuration(checkpoint, config)
    pairs, faults = _scaled(chosen, found)
    warnings += faults
    problems = [] if sliced else [str(problem) for problem in group.problems]
    warnings += problems[:_MAX_TOLD]
    if len(problems) > _MAX_TOLD:
        warnings.append(f"{checkpoint.path}: {len(problems) - _MAX_TOLD} more such faults of the adapter")
    fingerprint = said or (found.base_fingerprint if found is not None else "")
    families = _families(adapted, pairs, "" if found is None else found.source)
    return InspectedAdapters(families, pairs, fingerprint, tuple(warnings))


def _configuration(checkpoint: Checkpoint, config: Path | None) -> tuple[LoraConfig | None, list[str]]:
    if config is not None:
        return find_configuration(checkpoint, ScaleOption(config=config))[0], []
    try:
        found, looked_at = find_configuration(checkpoint, ScaleOption())
    except PetSurgeryError as error:  # what lies beside it may be of something else
        return None, [f"alpha is unknown: {problem}" for problem in error.problems]
    if found is None:
        places = ", ".join(str(place) for place in looked_at[:_MAX_PLACES])
        more = " and further up" if len(looked_at) > _MAX_PLACES else ""
        return None, [f"alpha is unknown: no configuration at {places}{more}; name one with --config"]
    if found.alpha is None and not found.alpha_pattern:
        return found, [f"alpha is unknown: {found.source} has none; name another with --config"]
    return found, []


def _scaled(pairs: Sequence[LoraPair], config: LoraConfig | None) -> tuple[tuple[InspectedPair, ...], list[str]]:
    found, faults = [], list[str]()
    for pair in pairs:
        alpha = None if config is None else config.alpha_of(pair.layer)
        scaling = None
        if config is not None and alpha is not None:
            try:
                scaling = config.scaling(pair.layer, pair.rank)
            except MismatchError as error:
                alpha = None
                faults += [f"alpha is unknown: {problem}" for problem in error.problems]
        found.append(
            InspectedPair(
                pair.layer,
                pair.family,
                pair.kind,
                pair.rank,
                alpha,
                scaling,
                pair.a,
                pair.b,
                pair.magnitude is not None,
            )
        )
    more = [f"{len(faults) - _MAX_TOLD} more layers likewise"] if len(faults) > _MAX_TOLD else []
    return tuple(found), faults[:_MAX_TOLD] + more


def _families(
    adapted: Sequence[InspectedTensor], pairs: Sequence[InspectedPair], config: str
) -> tuple[InspectedFamily, ...]:
    grouped: dict[tuple[str, str], list[InspectedTensor]] = {}
    for tensor in adapted:
        grouped.setdefault((_method(tensor.role), tensor.family), []).append(tensor)
    found = []
    for (method, family), tensors in grouped.items():
        own = [pair for pair in pairs if method == "LoRA" and pair.family == family]
        alphas = sorted({pair.alpha for pair in own if pair.alpha is not None})
        found.append(
            InspectedFamily(
                method,
                family,
                len(tensors),
                sum(_elements(tensor.shape) for tensor in tensors),
                sum(tensor.nbytes for tensor in tensors),
                tuple(sorted({pair.rank for pair in own})),
                tuple(alphas),
                config if alphas else "",
            )
        )
    return tuple(found)


def _method(role: str) -> str:
    _, colon, method = role.partition(": ")
    if colon:
        return method
    return "LoRA" if "LoRA" in role or "DoRA" in role else role


def _elements(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def with_spectra(
    pairs: Sequence[InspectedPair], tensors: Mapping[str, LazyTensor], progress: Progress
) -> tuple[tuple[InspectedPair, ...], tuple[str, ...]]:
    """The pairs with what scaling * B @ A is made of, and warnings.

    Args:
        pairs: The pairs.
        tensors: The tensors that they name.
        progress: Told how far it is.

    Raises:
        ResourceError: An I/O call failed.
    """
    found, diverged = [], []
    progress.start(sum(tensors[name].nbytes for pair in pairs for name in (pair.a, pair.b)), "computing spectra")
    try:
        for pair in pairs:
            spectrum = _spectrum(pair, tensors)
            progress.advance(tensors[pair.a].nbytes + tensors[pair.b].nbytes)
            found.append(replace(pair, spectrum=spectrum))
            if spectrum is None:
                diverged.append(pair.layer)
    finally:
        progress.finish()
    warnings = []
    unknown = sum(pair.scaling is None for pair in pairs)
    if unknown:
        warnings.append(f"the scaling of {unknown} layers is unknown: their spectra are those of B @ A, with scaling 1")
    if diverged:
        warnings.append(f"NaN or Inf in A, B or B @ A of {len(diverged)} layers such as {diverged[0]}: no spectrum")
    return tuple(found), tuple(warnings)


def _spectrum(pair: InspectedPair, tensors: Mapping[str, LazyTensor]) -> Spectrum | None:
    a, b = tensors[pair.a].read_all().astype(np.float64), tensors[pair.b].read_all().astype(np.float64)
    scaling = 1.0 if pair.scaling is None else pair.scaling
    with np.errstate(over="ignore"):
        bound = scaling * np.linalg.norm(a) * np.linalg.norm(b)  # of every singular value
        if not np.isfinite(bound * bound):  # LAPACK complains of such values on stdout
            return None
    if pair.kind == "expert":  # of each expert A is (in, rank) and B (rank, out)
        each = [lora_singular_values(down, up, scaling) for down, up in zip(a, b, strict=True)]
        values = np.sort(np.concatenate(each))[::-1]
    else:
        values = lora_singular_values(b.reshape(b.shape[0], pair.rank), a.reshape(pair.rank, -1), scaling)
    return Spectrum(
        scaling,
        tuple(map(float, values)),
        tuple(map(float, energy_by_rank(values))),
        effective_rank(values),
        float(np.linalg.norm(values)),
    )
