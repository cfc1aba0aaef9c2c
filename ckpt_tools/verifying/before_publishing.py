"""The proof of what a merge wrote, read back from the files before they are published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckpt_tools.distributed import open_whole
from ckpt_tools.formats import is_iteration
from ckpt_tools.merging.fold_plan import FoldPlan
from ckpt_tools.merging.strategies import MergeStrategies
from ckpt_tools.progress import Progress
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.verifying.matching import Expected, expect, match
from ckpt_tools.verifying.proof import Terms, prove
from ckpt_tools.writing.memory import Budget
from surgery.errors import Problem, VerificationError

__all__ = ["verify_written"]

_MAX_PROBLEMS = 10
_REMEDY = "Nothing was published. Merge again; if it stays, memory or disk are damaged, or this is a bug to report"


def verify_written(
    written: Path,
    base: Mapping[str, LazyTensor],
    weights: Mapping[str, LazyTensor],
    folds: FoldPlan,
    renamed: Mapping[str, str],
    strategies: MergeStrategies,
    budget: Budget,
    progress: Progress,
) -> None:
    """Prove that written files are base plus adapters, strictly.

    Args:
        written: The file or folder.
        base: All tensors of the base.
        weights: Its weights.
        folds: What is folded into them.
        renamed: Base name to name in the output, of those that changed.
        strategies: How the output is cut.
        budget: Threads and memory.
        progress: Told how far it is.

    Raises:
        VerificationError: They are something else.
    """
    says_how_it_is_cut = is_iteration(written)
    opened = open_whole(
        written,
        None if says_how_it_is_cut else strategies.target,
        replicated=strategies.replicated,
        may_leave_out=lambda name: name not in weights,
    )
    found = opened.base.tensors
    expected = [
        Expected(renamed.get(one.name, one.name), one.base_name, one.base, one.fold) for one in expect(weights, folds)
    ]
    comparable, states, offenders = match(expected, found, base, dtype=None)
    proof = prove(comparable, found, states, base, Terms(strict=True), budget, progress)
    offenders += proof.offenders
    if offenders:
        problems = [Problem(one.where, one.found, one.expected) for one in offenders[:_MAX_PROBLEMS]]
        count = f"{len(offenders)} tensors that are not base plus adapters"
        raise VerificationError([*problems, Problem(str(written.name), count, remedy=_REMEDY)])
