"""`unmerge`: restore the base of a merge, bit for bit, of the merged model, the adapters and the patch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckpt_tools.distributed import RANK_PREFIX
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.merging.inputs import check_crcs
from ckpt_tools.merging.strategies import MergeStrategies, for_each, merge_output, plan_merged
from ckpt_tools.patching import Patch, Restored, TensorRecord, read_patch
from ckpt_tools.patching.prediction import Prediction
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import DroppedTensor, UnmergeReport
from ckpt_tools.sizes import given_bytes
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import reshape
from ckpt_tools.unmerging.matching import factors_of, merged_problems
from ckpt_tools.writing.destination import check_destination, check_room, free_bytes
from ckpt_tools.writing.executors import check_executor
from ckpt_tools.writing.memory import make_budget
from ckpt_tools.writing.outputs import Changes, OutputOptions
from ckpt_tools.writing.plan import OutputBytes, OutputCopy, Plan
from ckpt_tools.writing.write import execute
from surgery.errors import MismatchError

__all__ = ["unmerge"]

PathLike = str | os.PathLike[str]


def unmerge(
    merged: PathLike,
    *adapters: PathLike,
    patch: PathLike,
    output: PathLike | None = None,
    src_strategy: PathLike | None = None,
    adapter_strategy: PathLike | Sequence[PathLike] | None = None,
    dst_strategy: PathLike | None = None,
    prefix: str = RANK_PREFIX,
    step: str | None = None,
    replicated: Sequence[str] = (),
    format: str = "keep",
    max_shard_size: int | str | None = None,
    check_crc: bool = True,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    max_memory: int | str | None = None,
    executor: str = "local",
    progress: Progress = SILENT,
) -> UnmergeReport:
    """Restore the base that `merge(..., unmerge_patch=...)` merged adapters into, bit for bit.

    Every stretch that is restored is compared with the digest of the base's before it is written.

    Args:
        merged: The merged model, of any format, under the names that it was written with.
        *adapters: The adapters that were merged, in any order, of any format and spelling: their content counts.
        patch: The patch.
        output: Where the base goes; by default into the working folder, `<stem of merged>-unmerged`.
        src_strategy: How the merged model's rank folders are cut, as of `merge`.
        adapter_strategy: The same for adapters in rank folders, one for all or one for each.
        dst_strategy: How the output is cut for ranks; by default it is whole.
        prefix: What the names of the ranks' files begin with, as of `transform`.
        step: Which step of the adapters, as of `merge`.
        replicated: Patterns of names that the inputs' strategies may lack, since every rank holds all of them.
        format: `keep`, which is the merged model's, `ckpt`, `safetensors` or `iteration`.
        max_shard_size: Bytes, or a size such as `5GB`: shards of a folder.
        check_crc: Check the CRC-32 of inputs that have one; costs a read of them.
        force: Replace an existing output.
        dry_run: Plan and check, write nothing.
        threads: By default one for each core.
        max_memory: Bytes, or a size such as `1GiB`: anonymous memory at most.
        executor: `local`, `ray` or `ray://HOST:PORT`: who writes the files.
        progress: What is told how far it is.

    Raises:
        UsageError: Arguments contradict each other.
        InputMissingError: An input is not there.
        CorruptInputError: An input breaks its format; among them a file that is no patch, or a damaged one.
        MismatchError: The merged model or the adapters are not those of the patch; all problems at once.
        VerificationError: What was restored is not the base: the merged model was changed, or the patch is damaged.
        ResourceError: No room, no memory, an I/O error, no cluster.
        OutputExistsError: The output exists and `force` is not set.
    """
    started = time.monotonic()
    check_executor(executor)
    paths = [Path(adapter) for adapter in adapters]
    each = for_each(len(paths), "--adapter-strategy", adapter_strategy)
    known = read_patch(patch)
    strategies = MergeStrategies.read(src_strategy, each, dst_strategy, replicated)
    opened, others = strategies.open(Path(merged), paths, step, progress)
    if check_crc:
        check_crcs((one.base for one in (opened, *others)), progress)
    problems = merged_problems(known, opened.base)
    factors, more = factors_of(known, [other.base for other in others])
    if problems or more:
        raise MismatchError([*problems, *more])
    tensors: list[NamedTensor] = [
        (record.name, _restored(record, known, opened.base.tensors[record.merged_name], factors))
        for record in known.facts.tensors
    ]
    base = replace(opened, base=replace(opened.base, metadata=known.facts.base_metadata))
    path = merge_output(opened.base, output, format, strategies.target, "unmerged")
    renamed = {record.name: record.merged_name for record in known.facts.tensors}
    options = OutputOptions(path, format, given_bytes(max_shard_size))
    plan = plan_merged(base, tensors, strategies.target, options, prefix, Changes(renamed=renamed))
    plan = _with_config(plan, known.facts.base_config)
    budget = make_budget(threads, given_bytes(max_memory))
    given = [opened.base.path, *(other.base.path for other in others), *strategies.paths(), Path(patch)]
    check_destination(plan, given, force=force)
    report = UnmergeReport(
        output=str(plan.output),
        merged=str(opened.base.path),
        patch=str(patch),
        adapters=tuple(str(other.base.path) for other in others),
        base_fingerprint=known.facts.base_fingerprint,
        format=next(plan.files()).format,
        files=tuple(entry.name for entry in plan.entries),
        restored=tuple(record.name for record in known.facts.tensors),
        dropped=tuple(
            DroppedTensor(entry.name, known.facts.base_file, entry.role) for entry in known.facts.not_restored
        ),
        warnings=(*opened.base.warnings, *(warning for other in others for warning in other.base.warnings)),
        bytes_read=plan.bytes_read(),
        bytes_written=plan.bytes_written(),
        peak_memory_bytes=budget.peak_bytes,
        free_disk_bytes=free_bytes(plan.output),
    )
    check_room((plan, report.bytes_written))
    if dry_run:
        return replace(report, dry_run=True, seconds=time.monotonic() - started)
    outcome = execute(plan, force=force, budget=budget, progress=progress, executor=executor)
    return replace(report, resumed=tuple(outcome.resumed), seconds=time.monotonic() - started)


def _restored(record: TensorRecord, patch: Patch, merged: LazyTensor, factors: dict[str, LazyTensor]) -> LazyTensor:
    terms = tuple(term.find(factors) for term in record.terms)
    factor = patch.factors.get(record.name)
    prediction = Prediction(record.dtype, terms, factor, record.dora_axis or 0)
    matrix = reshape(merged, record.grid.matrix)
    return reshape(Restored(record.name, matrix, prediction, record.grid, patch.tables[record.name]), record.shape)


def _with_config(plan: Plan, config: str | None) -> Plan:
    """The plan with the base's `config.json`, where merging had changed it."""
    if config is None:
        return plan
    entries = tuple(
        OutputBytes(entry.name, config.encode("utf-8", "surrogateescape"))
        if isinstance(entry, OutputCopy | OutputBytes) and entry.name == "config.json"
        else entry
        for entry in plan.entries
    )
    return replace(plan, entries=entries)
