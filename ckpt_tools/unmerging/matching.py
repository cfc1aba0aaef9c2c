"""Whether merged model and adapters are those that a patch was made for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckpt_tools.formats import Checkpoint
from ckpt_tools.patching import Patch, UsedAdapter, tensor_digest
from ckpt_tools.patching.prediction import merged_fingerprint
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import CorruptInputError, Problem

__all__ = ["factors_of", "merged_problems"]


def merged_problems(patch: Patch, merged: Checkpoint) -> list[Problem]:
    """Why a model is not the one that the patch was made for: names, shapes, and samples of the content.

    The rest of the content is proved by what is restored of it.
    """
    facts = patch.facts
    where, remedy = str(merged.path), f"Give the merged model of this patch: it was written as {facts.merged_file}"
    missing = [record.merged_name for record in facts.tensors if record.merged_name not in merged.tensors]
    if missing:
        found = f"no {missing[0]}" + (f", nor {len(missing) - 1} more" if len(missing) > 1 else "")
        return [Problem(where, found, "every tensor of the merged model", remedy)]
    problems = [
        Problem(f"{where}, {record.merged_name}", f"shape {shape}", str(record.shape), remedy)
        for record in facts.tensors
        if (shape := merged.tensors[record.merged_name].shape) != record.shape
    ]
    if problems:
        return problems
    actual = merged_fingerprint({record.merged_name: merged.tensors[record.merged_name] for record in facts.tensors})
    if actual != facts.merged_fingerprint:
        found = f"a model with the fingerprint {actual[:20]}..."
        return [Problem(where, found, f"the merged model, with {facts.merged_fingerprint[:20]}...", remedy)]
    return []


def factors_of(patch: Patch, adapters: Sequence[Checkpoint]) -> tuple[dict[str, LazyTensor], list[Problem]]:
    """The tensors of adapters by their digests, and why the adapters are not those of the patch; all of them are read.

    Content counts: names, format and order may be others than they were.

    Args:
        patch: The patch.
        adapters: The adapters.

    Raises:
        CorruptInputError: The patch gives a factor a shape that it cannot have.
    """
    known = {digest for adapter in patch.facts.adapters for digest in adapter.tensors}
    found: dict[str, LazyTensor] = {}
    problems = []
    for adapter in adapters:
        own = {tensor_digest(tensor): tensor for tensor in adapter.tensors.values()}
        if not own.keys() & known:
            remedy = "Give the adapters that were merged, and no other ones"
            problems.append(Problem(str(adapter.path), "an adapter that was not merged", _named(patch), remedy))
        found.update(own)
    factors = [factor for record in patch.facts.tensors for term in record.terms for factor in (term.left, term.right)]
    for factor in factors:
        if factor.digest in found and found[factor.digest].size != math.prod(factor.shape):
            what = f"the shape {list(factor.shape)} for a tensor of {found[factor.digest].size} elements"
            raise CorruptInputError(Problem(patch.source.path, what, "as many elements", "Copy the patch again"))
    needed = {factor.digest for factor in factors} - found.keys()
    for used in patch.facts.adapters:
        problems += _missing(used, needed & used.tensors.keys())
    return found, problems


def _missing(adapter: UsedAdapter, digests: set[str]) -> list[Problem]:
    if not digests:
        return []
    names = sorted(adapter.tensors[digest] for digest in digests)
    found = f"no tensor with the content of its {names[0]}" + (f", nor of {len(names) - 1} more" if names[1:] else "")
    remedy = f"Give this adapter, whose content has the digest {adapter.digest}"
    return [Problem(f"the adapter {adapter.file}", found, "all that was merged", remedy)]


def _named(patch: Patch) -> str:
    return "one of " + ", ".join(adapter.file for adapter in patch.facts.adapters)
