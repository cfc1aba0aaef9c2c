"""From a merge to the patch that undoes it: which tensor of the base follows from what."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.merging.accounting import BaseKeys
from ckpt_tools.merging.adapters import Adapter, pair_keys
from ckpt_tools.merging.fold_plan import Fold, FoldPlan
from ckpt_tools.patching import (
    Change,
    FactorRecord,
    NotRestored,
    PatchDraft,
    PatchFacts,
    TensorRecord,
    TermRecord,
    UsedAdapter,
    make_patch,
    tensor_digest,
)
from ckpt_tools.patching.grid import Grid
from ckpt_tools.patching.prediction import Prediction, merged_fingerprint
from ckpt_tools.progress import Progress
from ckpt_tools.tensors.folding import DoraMerged, LowRankTerm
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast, Transposed, reshape, unreshaped
from ckpt_tools.writing.manifest import printable_name
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.write import Outcome

__all__ = ["draft_patch", "with_patch"]

PathLike = str | os.PathLike[str]


def draft_patch(
    path: Path,
    base: Checkpoint,
    keys: BaseKeys,
    adapters: Sequence[Adapter],
    folds: FoldPlan,
    outputs: Sequence[NamedTensor],
    renamed: Mapping[str, str],
    *,
    output: Path,
    base_fingerprint: str,
    is_combined: bool,
    config_changes: bool,
) -> PatchDraft:
    """What a patch says, and how each tensor is compared. The adapters are read.

    Args:
        path: Where the patch goes.
        base: The base.
        keys: Its keys.
        adapters: What is merged.
        folds: What happens to each weight.
        outputs: The tensors of the merged model, under the base's names.
        renamed: The base's name to the merged model's, where they differ.
        output: Where the merged model goes.
        base_fingerprint: The fingerprint of the base's weights.
        is_combined: Whether the base holds the adapter.
        config_changes: Whether the merged model has another `config.json`.
    """
    merged = dict(outputs)
    known = _Digests()
    records, changes = [], []
    for name in keys.weights:
        fold = folds.folds.get(name)
        record, change = _change(name, renamed.get(name, name), base.tensors[name], merged[name], fold, known)
        changes.append(change)
        records.append(record)
    left = [NotRestored(name, role.value) for name, role in keys.states.items()]
    left += [NotRestored(name, "adapter") for name in keys.adapter]
    # A base that is a single file, slices or an iteration has none, although its merged model may be untied.
    config = Path("config.json")
    has_other_config = config_changes and config in base.companions
    facts = PatchFacts(
        tensors=tuple(records),
        adapters=tuple(
            UsedAdapter(printable_name(one.path), one.digest, _adapter_tensors(one, known, is_combined))
            for one in adapters
        ),
        merged_file=printable_name(output),
        merged_fingerprint=merged_fingerprint({renamed.get(name, name): merged[name] for name in keys.weights}),
        base_file=printable_name(base.path),
        base_fingerprint=base_fingerprint,
        base_metadata=base.metadata,
        base_config=(base.path / config).read_bytes().decode() if has_other_config else None,
        not_restored=tuple(left),
    )
    return PatchDraft(path, facts, tuple(changes))


@contextmanager
def with_patch(
    draft: PatchDraft | None,
    approve: Callable[[Outcome], None],
    *,
    force: bool,
    budget: Budget,
    progress: Progress,
) -> Iterator[tuple[Callable[[Outcome], None], int | None]]:
    """Make a patch, and publish it with the merged model or not at all.

    Args:
        draft: The patch; None for none.
        approve: What else approves of the merged model.
        force: Whether an existing patch may be replaced.
        budget: Threads and memory.
        progress: Told how far it is.

    Yields:
        What approves of the merged model and publishes the patch; bytes of the patch.
    """
    if draft is None:
        yield approve, None
        return
    with make_patch(draft, force=force, budget=budget, progress=progress) as made:

        def publish(outcome: Outcome) -> None:
            approve(outcome)
            made.is_needed = lambda: outcome.is_published
            made.publish()

        yield publish, made.nbytes


def _change(
    name: str, merged_name: str, base: LazyTensor, merged: LazyTensor, fold: Fold | None, known: _Digests
) -> tuple[TensorRecord, Change]:
    if fold is None and not isinstance(merged, Cast):
        grid = Grid.of(base.shape)
        same = Change(reshape(base, grid.matrix), None, grid, Prediction(base.dtype))
        return TensorRecord(name, merged_name, base.dtype, base.shape, grid), same
    # A bias is added to as a vector, and a replaced weight follows from nothing: these are predicted as they became.
    terms = tuple(fold.terms) if fold is not None and not fold.is_replaced and not fold.vectors else ()
    grid = Grid.of_matrix(fold.matrix_shape) if terms and fold is not None else Grid.of(base.shape)
    produced = unreshaped(merged)
    dora = produced if terms and isinstance(produced, DoraMerged) else None
    prediction = Prediction(base.dtype, terms, axis=dora.axis if dora is not None else 0)
    result = produced if produced.shape == grid.matrix else reshape(merged, grid.matrix)
    change = Change(reshape(base, grid.matrix), result, grid, prediction, dora)
    records = tuple(_term_record(term, known) for term in terms)
    axis = None if dora is None else dora.axis
    return TensorRecord(name, merged_name, base.dtype, base.shape, grid, records, axis), change


def _term_record(term: LowRankTerm, known: _Digests) -> TermRecord:
    return TermRecord(_factor_record(term.left, known), _factor_record(term.right, known), term.scaling)


def _factor_record(factor: LazyTensor, known: _Digests) -> FactorRecord:
    tensor = factor.source if isinstance(factor, Transposed) else factor
    return FactorRecord(known.of(tensor), tensor.shape, tensor is not factor)


def _adapter_tensors(adapter: Adapter, known: _Digests, is_combined: bool) -> dict[str, str]:
    names = [name for pair in adapter.group.pairs for name in pair_keys(pair)]
    names += [] if is_combined else [parameter.name for parameter in adapter.group.weights]
    return {known.of(adapter.tensors[name]): name for name in names}


class _Digests:
    """Digests of tensors, each of which is read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, tensor: LazyTensor) -> str:
        tensor = unreshaped(tensor)
        runs = tensor.byte_runs()
        key = repr((tensor.dtype, runs)) if runs is not None else repr(tensor)
        if key not in self._known:
            self._known[key] = tensor_digest(tensor)
        return self._known[key]
