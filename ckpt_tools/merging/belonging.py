"""Whether a base is the one that an adapter was trained on, by the fingerprint that the adapter carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_tools.fingerprint import TARGETS_VERSION, target_fingerprint
from ckpt_tools.merging.adapters import Adapter
from ckpt_tools.merging.fold_plan import FoldPlan
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import Problem

__all__ = ["other_bases"]


def other_bases(adapters: Sequence[Adapter], folds: FoldPlan, weights: Mapping[str, LazyTensor]) -> list[Problem]:
    """The adapters that belong to another base.

    Args:
        adapters: The adapters.
        folds: What is added to which weight; all pairs of an adapter are among it, or nothing is known of its base.
        weights: The base's weights.
    """
    problems = []
    for adapter in adapters:
        said = adapter.base_fingerprint
        if not said.startswith(TARGETS_VERSION):
            continue
        changed = {  # by the fold, which names that are tied share
            id(fold): name
            for name, fold in folds.folds.items()
            if any(use.adapter == str(adapter.path) and use.kind not in ("bias", "replaced") for use in fold.uses)
        }
        if len(changed) != len(adapter.group.pairs):
            continue  # some were left out with --allow-unused
        actual = target_fingerprint(weights[folds.untied.get(name, name)] for name in changed.values())
        if said != actual:
            problems.append(
                Problem(
                    str(adapter.path),
                    f"an adapter of the base {said[:20]}..., where this one is {actual[:20]}...",
                    "the base that the adapter was trained on",
                    "Its weights have other values: give that base, or accept this one with --allow-other-base",
                )
            )
    return problems
