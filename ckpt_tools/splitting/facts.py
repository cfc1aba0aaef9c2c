"""What is known of a LoRA delta beside its tensors: ranks, alphas, the base that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tools.fingerprint import fingerprint_of_targets
from ckpt_tools.formats import Checkpoint
from ckpt_tools.merging.adapters import ScaleOption, carried_fingerprint, find_configuration
from ckpt_tools.splitting.adapter_output import AdapterLayout
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.adapter_facts import AdaptedLayer, AdapterFacts
from surgery.config import LoraConfig
from surgery.errors import MismatchError, Problem
from surgery.grouping import LoraPair, group_lora
from surgery.naming import ParameterName, Role, classify

__all__ = ["Scales", "base_fingerprint", "find_scales", "lora_facts", "pairs_of"]


@dataclass(frozen=True, slots=True)
class Scales:
    """Where alpha comes from.

    Attributes:
        alpha: What the user gave, for all layers.
        config: The configuration that was given, or found beside the source.
        looked_at: Where one was looked for.
        by_layer: Layer to alpha, where it is known of each.
    """

    alpha: float | None
    config: LoraConfig | None
    looked_at: tuple[Path, ...] = ()
    by_layer: Mapping[str, float] = field(default_factory=dict)

    def alpha_of(self, layer: str) -> float | None:
        """A layer's alpha; None where it is not known."""
        if layer in self.by_layer or self.alpha is not None:
            return self.by_layer.get(layer, self.alpha)
        return None if self.config is None else self.config.alpha_of(layer)


def find_scales(source: Checkpoint, alpha: float | None, config: Path | None) -> Scales:
    """Find the configuration of an adapter.

    Args:
        source: The checkpoint, in whose metadata, beside which, and up to three folders above, one is looked for.
        alpha: What the user gave; what else the configuration says (rsLoRA, modules that were saved whole) holds on.
        config: The file that the user gave.

    Raises:
        InputMissingError: The file is not there.
        CorruptInputError: A configuration breaks its format.
        MismatchError: A configuration is of another method, or not known.
    """
    found, looked_at = find_configuration(source, ScaleOption(config=config))
    return Scales(alpha, found, looked_at)


def pairs_of(delta: Sequence[ParameterName], tensors: Mapping[str, LazyTensor]) -> tuple[LoraPair, ...]:
    """The pairs of A and B in a delta.

    Raises:
        MismatchError: A without B, shapes that do not fit, two adapters in one file: all problems at once.
    """
    names = [one.name for one in delta if one.role is not Role.WEIGHT]
    group = group_lora(names, {name: tensors[name].shape for name in names})
    if group.problems:
        raise MismatchError(group.problems)
    return group.pairs


def base_fingerprint(pairs: Sequence[LoraPair], source: Checkpoint, scales: Scales) -> str:
    """The fingerprint of the weights that a delta's pairs belong to; empty where it is not known.

    It is that of the weights in the checkpoint. An adapter alone has them not, and may carry the fingerprint that was
    made when they were at hand.

    Args:
        pairs: A and B of each layer of the delta.
        source: The checkpoint, which may carry a fingerprint in its metadata.
        scales: The configuration, which may carry one too.
    """
    found = fingerprint_of_targets(pairs, source.tensors)
    return found or (carried_fingerprint(source, scales.config, pairs) if pairs else "")


def lora_facts(
    pairs: Sequence[LoraPair],
    layout: AdapterLayout,
    scales: Scales,
    rest: Sequence[ParameterName],
    where: str,
    section: Mapping[str, object],
) -> AdapterFacts:
    """What the configuration of a LoRA delta has to say.

    Args:
        pairs: A and B of each layer, under the source's names.
        layout: The names that they get.
        scales: Where alpha comes from.
        rest: The base's parameters, if the source has them.
        where: What to call the source in an error.
        section: What this project adds.

    Raises:
        MismatchError: Alpha is not known.
    """
    unknown = next((pair.layer for pair in pairs if scales.alpha_of(pair.layer) is None), None)
    if unknown is not None:
        places = "; ".join(map(str, scales.looked_at)) or "the configuration"
        raise MismatchError(
            Problem(
                where,
                f"no alpha, in none of these places: --alpha and --config (not given); {places}",
                "the alpha of the training, which the configuration has to have and no checkpoint holds",
                "Give --alpha, or --config with the run's YAML or the adapter's configuration",
            )
        )
    config = scales.config
    layers = [AdaptedLayer(layout.layers[pair.a], pair.rank, scales.alpha_of(pair.layer) or 0.0) for pair in pairs]
    adapted = {pair.layer for pair in pairs}
    weights = [one for one in map(classify, layout.renamed) if one.role is Role.WEIGHT]
    saved = [one.name for one in weights if one.layer not in adapted]
    return AdapterFacts(
        layers=tuple(layers),
        other_layers=tuple(
            dict.fromkeys(one.layer for one in rest if one.name.endswith(".weight") and one.layer not in adapted)
        ),
        saved_modules=tuple(dict.fromkeys(layout.layers[name].rpartition(".")[0] for name in saved)),
        has_biases=len(saved) < len(weights),
        base_name=config.base_model_name if config is not None and config.base_model_name != "none" else "",
        use_rslora=config is not None and config.use_rslora,
        use_dora=any(pair.magnitude is not None for pair in pairs),
        lora_bias=any(pair.b_bias is not None for pair in pairs),
        fan_in_fan_out=config is not None and config.fan_in_fan_out,
        has_linear_alone=all(pair.kind == "linear" for pair in pairs),
        section=section,
    )
