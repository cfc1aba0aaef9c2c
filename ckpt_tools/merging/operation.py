"""`merge`: fold adapters into a base checkpoint, in one streaming pass."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ckpt_tools.combining import Combination
from ckpt_tools.distributed import RANK_PREFIX
from ckpt_tools.fingerprint import fingerprint
from ckpt_tools.merging.combined import combined_folds
from ckpt_tools.merging.draft import MergeDraft
from ckpt_tools.merging.inputs import checked_folds, open_inputs, scale_options
from ckpt_tools.merging.measured import refuse_nonfinite, with_statistics
from ckpt_tools.merging.patch_place import check_patch_options, check_patch_place, is_left_over
from ckpt_tools.merging.strategies import MergeStrategies, for_each, merge_output
from ckpt_tools.merging.undoing import with_patch
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import MergeReport
from ckpt_tools.sizes import given_bytes
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.writing.claims import check_claimable
from ckpt_tools.writing.destination import check_destination, check_room, nearest_folder
from ckpt_tools.writing.executors import check_executor
from ckpt_tools.writing.leftovers import sweep_published
from ckpt_tools.writing.memory import make_budget
from ckpt_tools.writing.outputs import OutputOptions
from ckpt_tools.writing.parts import parse_ranks, part_of
from ckpt_tools.writing.scratch import sweep_scratch
from ckpt_tools.writing.write import Outcome, execute
from surgery.errors import Problem, UsageError

__all__ = ["merge"]

PathLike = str | os.PathLike[str]

_DTYPES = ("keep", "bf16", "fp16", "fp32")
_FORMATS = ("keep", "ckpt", "safetensors", "iteration")


def merge(
    base: PathLike,
    *adapters: PathLike,
    output: PathLike | None = None,
    alpha: float | Sequence[float] | None = None,
    scaling: float | Sequence[float] | None = None,
    config: PathLike | Sequence[PathLike] | None = None,
    weight: float | Sequence[float] | None = None,
    method: str = "cat",
    density: float | None = None,
    majority_sign: str | None = None,
    seed: int | None = None,
    resize_rank: int | None = None,
    energy: float | None = None,
    src_strategy: PathLike | None = None,
    adapter_strategy: PathLike | Sequence[PathLike] | None = None,
    dst_strategy: PathLike | None = None,
    prefix: str = RANK_PREFIX,
    step: str | None = None,
    replicated: Sequence[str] = (),
    dtype: str = "keep",
    format: str = "keep",
    max_shard_size: int | str | None = None,
    names: str = "keep",
    ranks: str | Iterable[int] | None = None,
    allow_unused: Sequence[str] = (),
    allow_nonfinite: bool = False,
    allow_other_base: bool = False,
    check_crc: bool = True,
    verify: bool = False,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    max_memory: int | str | None = None,
    digest: bool = True,
    executor: str = "local",
    progress: Progress = SILENT,
    unmerge_patch: PathLike | None = None,
) -> MergeReport:
    """Fold adapters into a base: W + sum of weight * scaling * (B @ A), in float32, rounded once.

    Args:
        base: A checkpoint; without adapters, one that holds base and adapter.
        *adapters: Adapter files or folders; several on one weight are summed.
        output: Where the merged checkpoint goes; by default into the working folder, `<stem of base>-merged`.
        alpha: LoRA's alpha, one for all adapters or one for each. By default it is read from the adapter's
            configuration; there is no default value.
        scaling: The factor in front of B @ A itself, instead of alpha.
        config: A run's YAML or an adapter's configuration, instead of the one beside the adapter.
        weight: What each adapter is multiplied with besides, one for all or one for each; 1 by default.
        method: How several adapters on one weight become one update: `cat`, their exact sum, or another name among
            `surgery.combining.METHODS`, which are those of PEFT's `add_weighted_adapter`.
        density: The share of elements that methods with pruning keep, above 0 to 1.
        majority_sign: How `ties` and its kind elect a sign: `total`, by default, or `frequency`.
        seed: What `dare` and its kind draw by; 0 by default.
        resize_rank: The rank that each layer's update is cut to, by its singular values.
        energy: The share of squares that its rank must keep, instead of a rank.
        src_strategy: How the base's rank folders are cut: a strategy file, or a folder with those of all stages.
        adapter_strategy: The same for adapters in rank folders, one for all or one for each.
        dst_strategy: How the output is cut for ranks; by default it is whole.
        prefix: What the names of the ranks' files begin with, as of `transform`.
        step: Which step of the training, as `EPOCH_STEP` of ranks' files or `120` of iterations: of the adapters, or,
            where there are none, of the base, which holds both. By default the latest.
        replicated: Patterns of names that the inputs' strategies may lack, since every rank holds all of them.
        dtype: `keep`, `bf16`, `fp16` or `fp32`: the type of all floating-point tensors of the output.
        format: `keep`, `ckpt`, `safetensors`, or `iteration`: a folder of MindFormers' Checkpoint 2.0.
        max_shard_size: Bytes, or a size such as `5GB`: shards of a folder.
        names: `keep`, `hf`, `mindformers`, or a JSON file of old and new names.
        ranks: Write the files of these ranks alone, as `0-63` or numbers, and keep them for a call without `ranks`,
            which writes what is missing and publishes the output.
        allow_unused: Patterns of adapter keys that may have no home in the base.
        allow_nonfinite: Accept NaN, Inf and overflows.
        allow_other_base: Accept a base that is not the one whose fingerprint an adapter has.
        check_crc: Check the CRC-32 of inputs that have one; costs a read of them.
        verify: Prove of the written files, before they are published, that they are base plus adapters, as
            `ckpt_tools.verify` does it strictly; not with `ranks`.
        force: Replace an existing output.
        dry_run: Plan and check, write nothing.
        threads: By default one for each core.
        max_memory: Bytes, or a size such as `1GiB`: anonymous memory at most.
        digest: Put the digest of each of the output's tensors into its manifest.
        executor: `local`, `ray` or `ray://HOST:PORT`: who writes the files. Threads and memory are then each worker's.
        progress: What is told how far it is.
        unmerge_patch: Where to keep what rounding loses of the base, so that `unmerge` brings it back bit for bit.

    Raises:
        UsageError: Arguments contradict each other.
        InputMissingError: An input is not there.
        CorruptInputError: An input breaks its format.
        MismatchError: The inputs do not fit together; all problems at once.
        NonFiniteError: NaN, Inf or an overflow.
        VerificationError: With `verify`, what was written is something else; nothing is published.
        ResourceError: No room, no memory, an I/O error, no cluster.
        MissingExtraError: The executor's package is not installed.
        OutputExistsError: The output exists and `force` is not set.
    """
    started = time.monotonic()
    check_executor(executor)
    selected = None if ranks is None else parse_ranks(ranks)
    patch_path = None if unmerge_patch is None else check_patch_options(unmerge_patch, executor, selected)
    if dtype not in _DTYPES:
        raise UsageError(Problem("--dtype", dtype, ", ".join(_DTYPES)))
    if format not in _FORMATS:
        remedy = "An adapter's format is for --adapters-only"
        raise UsageError(Problem("--format", format, ", ".join(_FORMATS), remedy))
    if verify and selected is not None:
        remedy = "Give it to the last call, without --ranks, which publishes the output"
        raise UsageError(Problem("--verify and --ranks", "both", "a whole output", remedy))
    how = Combination.of(method, density, majority_sign, seed, resize_rank, energy)
    _check_together(how, patch_path, selected)
    options = scale_options(max(len(adapters), 1), alpha, scaling, config, weight)
    each = for_each(len(adapters), "--adapter-strategy", adapter_strategy)
    strategies = MergeStrategies.read(src_strategy, each, dst_strategy, replicated)
    paths = [Path(path) for path in adapters]
    inputs = open_inputs(
        Path(base), paths, strategies, step, options, progress, allow_nonfinite=allow_nonfinite, with_crc=check_crc
    )
    folds = checked_folds(inputs, allow_unused, allow_other_base=allow_other_base)
    limit = given_bytes(max_memory)
    budget = make_budget(threads, limit)
    path = merge_output(inputs.base, output, format, strategies.target)
    target = None if dtype == "keep" else BY_NAME[dtype]
    draft = MergeDraft(inputs, folds, how, target, fingerprint(inputs.weights), check_finite=not allow_nonfinite)
    planned = partial(
        draft.plan,
        OutputOptions(path, format, given_bytes(max_shard_size)),
        names,
        strategies.target,
        prefix,
        digest=digest,
    )
    plan, renamed = planned()
    part = part_of(plan, selected, 0 if strategies.target is None else strategies.target.ranks)
    given = [inputs.base.path, *(adapter.path for adapter in inputs.adapters), *strategies.paths()]
    # A cluster's machines read what was combined, so it lies where the output does.
    place = None if executor == "local" or dry_run else nearest_folder(path)
    sweep_published(path, *([] if patch_path is None else [patch_path]))
    if not how.is_sum:
        sweep_scratch(place)
    check_destination(plan, given, force=force)
    may_replace_patch = force
    if patch_path is not None:
        read = [*given, *(Path(source.path) for source in plan.sources())]
        if patch_path.exists() and not force:
            may_replace_patch = is_left_over(draft.patch(patch_path, plan, renamed), plan.output)
        check_patch_place(patch_path, plan.places, read, force=may_replace_patch)
    if not (how.is_sum or dry_run):
        check_claimable(plan.output, is_folder=plan.is_folder, force=force)
    with combined_folds(folds, how, place, budget, progress, max_memory=limit) as peak:
        if not how.is_sum:
            plan, renamed = planned()  # of what the folds are by now
        report = replace(
            draft.report(plan, part, budget, renamed),
            ranks=None if selected is None else str(selected),
            unmerge_patch=None if patch_path is None else str(patch_path),
            peak_memory_bytes=max(budget.peak_bytes, peak),
        )
        check_room((part or plan, report.bytes_written))
        if dry_run:
            return replace(report, dry_run=True, seconds=time.monotonic() - started)

        def approve(outcome: Outcome) -> None:
            if not allow_nonfinite:
                refuse_nonfinite(outcome)
            if verify:
                from ckpt_tools.verifying.before_publishing import verify_written  # which builds on this package

                assert outcome.content is not None
                written = outcome.content if plan.is_folder else outcome.content / plan.output.name
                base_tensors = inputs.base.tensors
                verify_written(written, base_tensors, inputs.weights, folds, renamed, strategies, budget, progress)

        patch = None if patch_path is None else draft.patch(patch_path, plan, renamed)
        with with_patch(patch, approve, force=may_replace_patch, budget=budget, progress=progress) as (
            approve_all,
            patch_bytes,
        ):
            outcome = execute(
                plan,
                part=part,
                force=force,
                budget=budget,
                progress=progress,
                approve=approve_all,
                executor=executor,
                # A patch is for the bits of one machine; a combination lies in a folder that is another in each run.
                resume=patch is None and how.is_sum,
            )
    weights = sum(tensor.nbytes for tensor in inputs.weights.values())
    return replace(
        with_statistics(report, outcome),
        resumed=tuple(outcome.resumed),
        seconds=time.monotonic() - started,
        unmerge_patch_bytes=patch_bytes,
        unmerge_patch_share=None if not patch_bytes else patch_bytes / weights,
    )


def _check_together(how: Combination, patch: Path | None, ranks: object) -> None:
    """What only a sum can have, as what is combined beforehand is another run's or another machine's to repeat."""
    for option, given in (("--unmerge-patch", patch), ("--ranks", ranks)):
        if given is not None and not how.is_sum:
            remedy = "Write the combination first (--adapters-only), and merge that with this option"
            found = f"--method {how.words}, whose result is not the same bits on every machine"
            raise UsageError(Problem(option, found, "the sum of the adapters, --method cat", remedy))
