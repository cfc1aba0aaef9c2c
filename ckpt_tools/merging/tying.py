"""Tied weights: which of them still are one parameter behind the adapters, and what the others hold.

A network with tied weights uses one parameter under several names and saves it under one. What an adapter adds to a
layer belongs to that layer alone: the embedding's update is not the output head's. So the two are written apart, and
`config.json` says that nothing is tied any more, which holds for every tied pair of the network.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ckpt_tools.fingerprint import same_values
from ckpt_tools.merging.fold_plan import Fold, FoldPlan
from ckpt_tools.reports import AdapterUse, DroppedTensor
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import Problem
from surgery.ties import may_hide_a_tie, tied_names

__all__ = ["settle_ties"]

_EMBEDDING = re.compile(r"embed|wte|shared", re.IGNORECASE)


def settle_ties(plan: FoldPlan, base: Mapping[str, LazyTensor], config: Mapping[str, Any] | None) -> None:
    """Keep tied what the adapters leave equal, and give the other weights values of their own.

    Args:
        plan: All folds; its `untied` has the names that adapters use and the base does not have.
        base: Name to tensor of the base's weights.
        config: The base's Hugging Face `config.json`.
    """
    _refuse_unknown_ties(plan, base, config)
    groups: dict[str, list[str]] = {}
    for name, saved in plan.untied.items():
        groups.setdefault(saved, []).append(name)
    known = base.keys() | plan.untied.keys()
    for saved in plan.folds.keys() & base.keys():
        groups.setdefault(saved, []).extend(tied_names(saved, known, config))
    plan.untied.clear()
    # In the base's order, so that the output does not depend on that of a set.
    for saved in [name for name in base if groups.get(name)]:
        _settle(plan, saved, groups[saved])
    if plan.untied:
        _untie_the_rest(plan, base, config)


def _refuse_unknown_ties(plan: FoldPlan, base: Mapping[str, LazyTensor], config: Mapping[str, Any] | None) -> None:
    if not may_hide_a_tie(base.keys(), config):
        return
    for name, fold in plan.folds.items():
        if _EMBEDDING.search(name) and (fold.is_copy or any(use.kind == "embedding" for use in fold.uses)):
            plan.problems.append(
                Problem(
                    name,
                    "an adapter of this embedding, to which the output head may be tied: the base has no head, and its "
                    "name is not known for this architecture",
                    remedy="Save the base with a head of its own first (config.tie_word_embeddings = False)",
                )
            )


def _settle(plan: FoldPlan, saved: str, names: Sequence[str]) -> None:
    folds = {name: plan.folds[name] for name in (saved, *names) if name in plan.folds}
    if not folds:
        return
    if _stay_equal(folds, 1 + len(names)):
        _keep_tied(plan, saved, folds)
        return
    # A value of the parameter itself is what each of its names had before its own update.
    value = next((fold for fold in folds.values() if fold.is_replaced and not fold.is_copy), None)
    for name in (saved, *names):
        fold = folds.get(name)
        if value is None or (fold is not None and fold.is_replaced):
            continue
        if fold is None:
            plan.folds[name] = Fold(value.weight, [_replacement_of(value)], is_replaced=True)
        else:
            fold.weight = value.weight
            fold.uses.insert(0, _replacement_of(value))
    for name in names:
        plan.untied[name] = saved
        plan.warnings.append(f"{name} was tied to {saved}; the adapters make the two differ, so the output holds both")


def _stay_equal(folds: Mapping[str, Fold], count: int) -> bool:
    """Whether a parameter of so many names has one value under all of them."""
    first, *others = folds.values()
    if any(fold.is_updated for fold in folds.values()):
        return False
    if len(folds) < count and any(fold.is_copy for fold in folds.values()):
        return False
    return all(same_values(first.weight, other.weight) for other in others)


def _keep_tied(plan: FoldPlan, saved: str, folds: Mapping[str, Fold]) -> None:
    kept, *others = folds.values()
    for name in folds:
        del plan.folds[name]
    plan.folds[saved] = kept
    plan.dropped += [
        DroppedTensor(key, use.adapter, f"the same values as {saved}, to which it is tied")
        for fold in others
        for use in fold.uses
        for key in use.keys
    ]


def _replacement_of(fold: Fold) -> AdapterUse:
    return next(use for use in fold.uses if use.kind == "replaced")


def _untie_the_rest(plan: FoldPlan, base: Collection[str], config: Mapping[str, Any] | None) -> None:
    known = {*base, *plan.untied}
    for saved in base:
        for name in tied_names(saved, known, config):
            plan.untied[name] = saved
            if saved in plan.folds:
                plan.folds[name] = plan.folds[saved]
