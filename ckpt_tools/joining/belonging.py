"""Which base a combination belongs to, by the fingerprints that its adapters carry."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_tools.fingerprint import TARGETS_VERSION
from ckpt_tools.joining.matching import Joined
from ckpt_tools.merging.adapters import Adapter
from surgery.errors import MismatchError, Problem

__all__ = ["base_of"]


def base_of(adapters: Sequence[Adapter], joined: Joined, *, allow_other_base: bool) -> tuple[str, list[str]]:
    """The fingerprint of the weights that a combination changes, and what the user ought to know of it.

    A fingerprint is over the weights of all layers of an adapter, so those of the same layers alone can be compared.

    Args:
        adapters: What is combined.
        joined: Which layers they have.
        allow_other_base: Accept adapters of different bases.

    Returns:
        The fingerprint, empty where no adapter says it of all layers of the result, or they say different ones;
        warnings.

    Raises:
        MismatchError: Adapters of the same layers say that they were trained on different bases.
    """
    said: dict[frozenset[str], dict[str, str]] = {}
    for number, adapter in enumerate(adapters):
        if adapter.base_fingerprint.startswith(TARGETS_VERSION):
            layers = joined.layers.items()
            own = frozenset(weight for weight, layer in layers if any(one == number for one, _ in layer.pairs))
            said.setdefault(own, {}).setdefault(adapter.base_fingerprint, str(adapter.path))
    warnings = []
    named = {one.config.base_model_name for one in adapters if one.config is not None} - {"", "none"}
    if len(named) > 1:
        warnings.append(f"the adapters' configurations name several bases: {', '.join(sorted(named))}")
    different = next((fingerprints for fingerprints in said.values() if len(fingerprints) > 1), None)
    if different is not None:
        (first, path), (other, its_path), *_ = different.items()
        if not allow_other_base:
            found = f"an adapter of the base {other[:20]}..., where {path} is of {first[:20]}..."
            remedy = "Their bases have other values: combine adapters of one, or accept it with --allow-other-base"
            raise MismatchError(Problem(its_path, found, "adapters of one base", remedy))
        warnings.append(
            f"{path} and {its_path} were trained on different bases, so the result names neither: a merge will take "
            "any base for it"
        )
        return "", warnings
    of_all = said.get(frozenset(joined.layers), {})
    if said and not of_all:
        warnings.append(
            "no adapter has all layers of the result, so which base it belongs to is not in it any more: a merge "
            "will not notice another one"
        )
    return next(iter(of_all), ""), warnings
