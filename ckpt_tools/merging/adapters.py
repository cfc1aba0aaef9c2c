"""Adapters as a merge needs them: their tensors, grouped; their configuration; the scale of each update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.fingerprint import TARGETS_VERSION, content_digest
from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.strict_json import parse_json
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.writing.leftovers import check_settled
from surgery.adapter_facts import METADATA_CONFIG, METADATA_FINGERPRINT
from surgery.config import LoraConfig
from surgery.config_files import config_beside, find_adapter_config, parse_adapter_config, read_adapter_config
from surgery.errors import CorruptInputError, MismatchError, NonFiniteError, Problem
from surgery.grouping import LoraGroup, LoraPair, group_lora
from surgery.naming import Role, classify
from surgery.scaling import lora_scaling

__all__ = [
    "A_ROLES",
    "Adapter",
    "Scale",
    "ScaleOption",
    "carried_fingerprint",
    "configuration_files",
    "find_configuration",
    "load_adapter",
    "pair_keys",
    "scale_of",
    "scale_origin",
]

A_ROLES = frozenset({Role.LORA_A, Role.EMBEDDING_A, Role.EXPERT_A})
"""LoRA's A of linear layers, embeddings and experts: one for each pair."""


@dataclass(frozen=True, slots=True)
class ScaleOption:
    """What the command line says about the scale.

    Attributes:
        alpha: LoRA's alpha, for every layer.
        scaling: The factor in front of B @ A itself, for every layer.
        config: A configuration file to read instead of the one beside the adapter.
        weight: What the whole adapter is multiplied with besides.
    """

    alpha: float | None = None
    scaling: float | None = None
    config: Path | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Scale:
    """The factor of one update, and the alpha that it was made of, if it was."""

    scaling: float
    alpha: float | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was opened, grouped and found to be sound.

    Attributes:
        path: What the user gave; a combined checkpoint's own path.
        tensors: All tensors of the file.
        group: Its parameters by layer.
        config: Its configuration, if one was found.
        looked_at: Where a configuration was looked for.
        option: What the command line says about the scale.
        digest: Over the content of all that is folded or put in place.
        base_fingerprint: That of the base that it belongs to, where its file or its configuration has it.
    """

    path: Path
    tensors: Mapping[str, LazyTensor]
    group: LoraGroup
    config: LoraConfig | None
    looked_at: tuple[Path, ...]
    option: ScaleOption
    digest: str
    base_fingerprint: str = ""

    @property
    def weight(self) -> float:
        """What the whole adapter is multiplied with."""
        return self.option.weight

    @property
    def families(self) -> tuple[str, ...]:
        """How its parameters are spelled."""
        return tuple(sorted({pair.family for pair in self.group.pairs}))


def load_adapter(
    checkpoint: Checkpoint, option: ScaleOption, *, is_combined: bool, allow_nonfinite: bool | None = None
) -> Adapter:
    """Group an adapter's tensors and find its configuration.

    Args:
        checkpoint: The adapter, or a checkpoint that holds base and adapter.
        option: What the command line says about the scale.
        is_combined: Whether plain weights are the base rather than part of the adapter.
        allow_nonfinite: Accept NaN and Inf; None where the user cannot ask for it.

    Raises:
        InputMissingError: The configuration named on the command line is not there.
        CorruptInputError: A configuration breaks its format.
        MismatchError: A configuration asks for what cannot be folded, or a matrix holds codes instead of values.
        NonFiniteError: A tensor holds NaN or Inf.
    """
    tensors = checkpoint.tensors
    group = group_lora(tensors, {name: tensor.shape for name, tensor in tensors.items()})
    config, looked_at = find_configuration(checkpoint, option)
    own = {name: tensors[name] for pair in group.pairs for name in pair_keys(pair)}
    _refuse_codes(checkpoint.path, own)
    if not is_combined:
        own |= {parameter.name: tensors[parameter.name] for parameter in group.weights}
    digest, nonfinite = content_digest(own)
    if nonfinite and not allow_nonfinite:
        remedy = "The training diverged: take an earlier checkpoint"
        remedy += "" if allow_nonfinite is None else ", or accept it with --allow-nonfinite"
        raise NonFiniteError(
            Problem(f"{checkpoint.path}, {name}", "NaN or Inf", "finite values", remedy) for name in nonfinite
        )
    said = checkpoint.metadata.get(METADATA_FINGERPRINT, "") if not is_combined else ""
    fingerprint = said or (config.base_fingerprint if config is not None else "")
    return Adapter(checkpoint.path, tensors, group, config, looked_at, option, digest, fingerprint)


def _refuse_codes(path: Path, matrices: Mapping[str, LazyTensor]) -> None:
    """Refuse integers, and FP8, whose scales are somewhere else: their values are not those of the adapter."""
    codes = [(name, tensor.dtype) for name, tensor in matrices.items() if not tensor.dtype.is_float]
    if codes:
        remedy = "Save the adapter in fp16, bf16 or fp32 first, its values multiplied with their scales"
        raise MismatchError(
            Problem(f"{path}, {name}", f"elements of type {dtype}", "floating-point matrices", remedy)
            for name, dtype in codes
        )


def pair_keys(pair: LoraPair) -> tuple[str, ...]:
    """The keys of a pair's tensors."""
    return tuple(key for key in (pair.a, pair.b, pair.magnitude, pair.b_bias) if key is not None)


def carried_fingerprint(checkpoint: Checkpoint, config: LoraConfig | None, pairs: Sequence[LoraPair]) -> str:
    """The fingerprint of the weights behind some of an adapter's pairs, as its file or its configuration carries it.

    It is that of all of its layers together: empty where these are not all, and where it is that of a whole base. Other
    names and types of A and B do not change it.
    """
    said = checkpoint.metadata.get(METADATA_FINGERPRINT, "") or (config.base_fingerprint if config is not None else "")
    has_all = {name for name in checkpoint.tensors if classify(name).role in A_ROLES} == {pair.a for pair in pairs}
    return said if said.startswith(TARGETS_VERSION) and has_all else ""


def scale_of(adapter: Adapter, pair: LoraPair) -> Scale:
    """The factor in front of B @ A.

    The command line comes first, then the configuration; there is no default.

    Raises:
        MismatchError: Alpha is nowhere, 0, or not finite; or the configuration is not this adapter's.
    """
    option, config = adapter.option, adapter.config
    if option.scaling is not None:
        return Scale(option.scaling, None)
    if option.alpha is not None:
        use_rslora = config is not None and config.use_rslora
        return Scale(lora_scaling(option.alpha, pair.rank, use_rslora=use_rslora), option.alpha)
    if config is None or config.alpha_of(pair.layer) is None:
        raise MismatchError(_unknown_alpha(adapter))
    return Scale(config.scaling(pair.layer, pair.rank), config.alpha_of(pair.layer))


def configuration_files(adapters: Iterable[Adapter]) -> set[Path]:
    """The files that configurations were read from, given or found: inputs, that no output may replace."""
    paths = {Path(adapter.config.source) for adapter in adapters if adapter.config is not None}
    return {path for path in paths if path.is_file()}  # not what lies in an adapter's metadata


def scale_origin(adapter: Adapter) -> str:
    """The file that the scale is read from; empty where the command line gives it."""
    option, config = adapter.option, adapter.config
    is_given = option.scaling is not None or option.alpha is not None
    return "" if is_given or config is None else config.source


def _unknown_alpha(adapter: Adapter) -> Problem:
    places = [str(place) for place in adapter.looked_at]
    if adapter.config is not None:
        places.insert(0, f"{adapter.config.source} (it has no alpha)")
    looked = "; ".join(["--alpha, --scaling and --config (not given)", *places])
    return Problem(
        str(adapter.path),
        f"alpha in none of these places: {looked}",
        "the alpha of the training, on which the scale depends and which no checkpoint holds",
        "Give --alpha, or --config with the run's YAML or the adapter's configuration",
    )


def find_configuration(checkpoint: Checkpoint, option: ScaleOption) -> tuple[LoraConfig | None, tuple[Path, ...]]:
    """An adapter's configuration and where it was looked for: the named one, that of the metadata, or one beside."""
    if option.config is not None:
        return read_adapter_config(option.config), ()
    inside = checkpoint.metadata.get(METADATA_CONFIG)
    if inside is not None:
        where = f"{checkpoint.path}, metadata {METADATA_CONFIG}"
        values = parse_json(inside.encode(), where)
        if not isinstance(values, dict):
            raise CorruptInputError(Problem(where, "something else", "a JSON object"))
        return parse_adapter_config(values, where), ()
    found, looked_at = find_adapter_config(checkpoint.path)
    if found is None:
        return None, looked_at
    config = read_adapter_config(found)
    if not checkpoint.is_folder and found == config_beside(checkpoint.path.absolute()):
        check_settled(checkpoint.path, found)  # behind the reading: a run that begins later replaces the file later
    return config, looked_at
