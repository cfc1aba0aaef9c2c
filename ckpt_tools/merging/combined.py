"""Folds whose adapters are combined by a method before they are added to the weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ckpt_tools.combining import Combination, Layer, Part, bias_problem, combine_layers, layer_problems
from ckpt_tools.combining.foretold import peak_bytes
from ckpt_tools.merging.fitting import term_of
from ckpt_tools.merging.fold_plan import Fold, FoldPlan
from ckpt_tools.progress import Progress
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.scratch import scratch_folder
from surgery.errors import MismatchError, Problem
from surgery.translation import to_huggingface

__all__ = ["combined_folds", "fold_layers"]


@contextmanager
def combined_folds(
    folds: FoldPlan,
    how: Combination,
    place: Path | None,
    budget: Budget,
    progress: Progress,
    *,
    max_memory: int | None = None,
) -> Iterator[int]:
    """Combine the adapters of each weight; what is made of them lies in a temporary folder, gone behind the block.

    Args:
        folds: What happens to each weight; changed in place.
        how: The method.
        place: An existing folder for the temporary one; None for where such files go.
        budget: Threads and memory.
        progress: Told how far it is.
        max_memory: Bytes of anonymous memory at most, if the user says so.

    Yields:
        The anonymous memory that it took at most; 0 where nothing had to be combined beforehand.

    Raises:
        MismatchError: Some weights' adapters cannot be combined so; all problems at once.
        ResourceError: No room, or not enough memory.
    """
    shared = [name for name, fold in folds.folds.items() if len(fold.terms) > 1 or len(fold.vectors) > 1]
    if shared:
        done = "summed" if how.is_sum else f"combined by {how.words}"
        folds.warnings.append(f"{len(shared)} weights take several adapters, which are {done}: {shared[0]}, ...")
    layers = fold_layers(folds, how)
    if how.is_sum:
        yield 0
        return
    with scratch_folder(place) as folder:
        done_layers = combine_layers(layers, how, BY_NAME["fp32"], folder, budget, progress, max_memory=max_memory)
        for name, combined in done_layers.items():
            fold = folds.folds[name]
            pair = replace(fold.pairs[0].pair, rank=combined.report.rank)
            fold.terms = [term_of(pair, combined.a, combined.b, 1.0, fold.pairs[0].fit)]
            fold.combination = combined.report
        unfinished = [name for name, combined in done_layers.items() if not combined.report.converged]
        if unfinished:
            found = f"{len(unfinished)} layers did not come to rest in their decomposition: {unfinished[0]}, ..."
            folds.warnings.append(found)
        yield peak_bytes(layers, how, budget)


def fold_layers(folds: FoldPlan, how: Combination) -> list[Layer]:
    """The low-rank updates of folds as layers to combine.

    Raises:
        MismatchError: A method does not take them; all problems at once.
    """
    if how.is_sum:
        return []
    layers, problems = [], []
    known: dict[int, str] = {}
    for name, fold in folds.folds.items():
        if known.setdefault(id(fold), name) != name:
            continue  # names that are tied share a fold
        if fold.vectors and (problem := bias_problem(name, how)) is not None:
            problems.append(problem)
        if not fold.pairs:
            continue
        if fold.magnitude is not None:
            found = f"--method {how.words} and a DoRA adapter, whose magnitudes were trained for its own A and B"
            problems.append(Problem(name, found, "LoRA without magnitudes", "Merge it by itself"))
        elif len({(one.pair.kind, one.fit.transposed) for one in fold.pairs}) > 1:
            kinds = " and ".join(sorted({one.pair.kind for one in fold.pairs}))
            found = f"adapters of it as {kinds}, one the other way round"
            problems.append(Problem(name, found, "adapters that go the same way", "Sum them with --method cat"))
        else:
            layers.append(_layer(name, fold))
    problems += layer_problems(layers, how)
    if problems:
        raise MismatchError(problems)
    return layers


def _layer(name: str, fold: Fold) -> Layer:
    parts = [Part(one.adapter, one.a, one.b, one.weight, one.scaling, one.pair.rank) for one in fold.pairs]
    pair = fold.pairs[0].pair
    return Layer(name, pair.kind, tuple(parts), to_huggingface(pair.layer))
