"""`transform`: a checkpoint in one layout written in another, without a full copy in between."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tools.distributed.gathering import Gathered
from ckpt_tools.distributed.iteration_outputs import iteration_facts, plan_iteration
from ckpt_tools.distributed.opening import Opened, open_whole
from ckpt_tools.distributed.rank_outputs import plan_ranks
from ckpt_tools.distributed.replicas import compare_replicas, compare_unlisted, sample_replicas
from ckpt_tools.distributed.scattering import Scattered, scatter
from ckpt_tools.fingerprint import fingerprint
from ckpt_tools.formats import check_crc
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.layout import Strategy, read_strategy
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.renaming import rename_tensors
from ckpt_tools.reports import TransformedTensor, TransformReport
from ckpt_tools.sizes import parse_size
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast
from ckpt_tools.writing.destination import check_destination, check_room, destination, free_bytes
from ckpt_tools.writing.executors import check_executor
from ckpt_tools.writing.finite import refuse_overflow
from ckpt_tools.writing.manifest import ManifestInput
from ckpt_tools.writing.memory import Budget, make_budget
from ckpt_tools.writing.outputs import Changes, OutputOptions, default_output, plan_output
from ckpt_tools.writing.parts import parse_ranks, part_of
from ckpt_tools.writing.plan import Plan, with_manifest
from ckpt_tools.writing.write import Outcome, execute
from surgery.errors import MismatchError, PetSurgeryError, Problem, UsageError
from surgery.states import is_training_scalar, split_optimizer_state
from surgery.version import __version__

__all__ = ["transform"]

PathLike = str | os.PathLike[str]

_DTYPES = ("keep", "bf16", "fp16", "fp32")
_FORMATS = ("keep", "ckpt", "safetensors", "iteration")
_MAX_PROBLEMS = 50


def transform(
    source: PathLike,
    *,
    src_strategy: PathLike | None = None,
    dst_strategy: PathLike | None = None,
    output: PathLike | None = None,
    prefix: str = "checkpoint_",
    step: str | None = None,
    dtype: str = "keep",
    format: str = "keep",
    max_shard_size: int | str | None = None,
    names: str = "keep",
    ranks: str | Iterable[int] | None = None,
    replicated: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
    allow_nonfinite: bool = False,
    check_replicas: bool = False,
    check_crc: bool = False,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    max_memory: int | str | None = None,
    digest: bool = True,
    executor: str = "local",
    progress: Progress = SILENT,
) -> TransformReport:
    """Write a checkpoint in another layout.

    Args:
        source: Folders of ranks, with `src_strategy`; an iteration of MindFormers' Checkpoint 2.0, or the parent of
            several; or a whole checkpoint: a file, or a folder of shards.
        src_strategy: How the source is cut: a strategy file, or a folder with those of all stages. By default it is
            whole.
        dst_strategy: How the output is cut. By default it is whole.
        output: Where it goes; by default into the working folder, `<stem of source>-transformed`. Ranks go to
            `OUTPUT/rank_N/`; a whole output is a file where the path has a suffix, else a folder of shards.
        prefix: What the names of the ranks' files begin with; the rank's number and the suffix follow. An iteration's
            files have it only where it is another than the default, else the prefix of the source's.
        step: Which step of the ranks' files, as `EPOCH_STEP`, or which iteration, as `120`; by default the latest.
        dtype: `keep`, `bf16`, `fp16` or `fp32`: the type of all floating-point tensors of the output.
        format: `keep`, `ckpt`, `safetensors`, or `iteration`: a folder of MindFormers' Checkpoint 2.0.
        max_shard_size: Bytes, or a size such as `5GB`: shards of a whole output.
        names: `keep`, `hf`, `mindformers`, or a JSON file of old and new names. The target's strategy has new names.
        ranks: Write the files of these ranks alone, as `0-63` or numbers, and keep them for a call without `ranks`,
            which writes what is missing and publishes the output.
        replicated: Patterns of names that the source's strategy may lack, since every rank holds all of them.
        allow_missing: Patterns of names in the target's strategy, or in the source's where the output is whole, that
            the source may lack.
        allow_unused: Patterns of names in the source that a strategy may lack; they are left out.
        allow_nonfinite: Accept values that `dtype` cannot hold: they become Inf.
        check_replicas: Compare everything that the source holds more than once.
        check_crc: Check the CRC-32 of all files that have one, before anything is written; costs a read of them.
            Otherwise it is checked of those that are read whole for the output.
        force: Replace an existing output.
        dry_run: Plan and check, write nothing.
        threads: By default one for each core.
        max_memory: Bytes, or a size such as `1GiB`: anonymous memory at most.
        digest: Put the digest of each of the output's tensors into its manifest.
        executor: `local`, `ray` or `ray://HOST:PORT`: who writes the files. Threads and memory are then each worker's.
        progress: What is told how far it is.

    Raises:
        UsageError: Arguments contradict each other.
        InputMissingError: An input is not there.
        CorruptInputError: An input breaks its format.
        MismatchError: Files and strategies do not fit together; all problems at once.
        NonFiniteError: A value is beyond the range of `dtype`.
        ResourceError: No room, no memory, an I/O error, no cluster.
        MissingExtraError: The executor's package is not installed.
        OutputExistsError: The output exists and `force` is not set.
    """
    started = time.monotonic()
    check_executor(executor)
    selected = None if ranks is None else parse_ranks(ranks)
    _check_words(("--dtype", dtype, _DTYPES), ("--format", format, _FORMATS))
    source = Path(source)
    strategies = _read_strategies(src_strategy, dst_strategy)
    opened = open_whole(source, strategies[0], step=step, replicated=replicated, may_leave_out=_matches(allow_unused))
    checked = _check_crcs(opened, progress) if check_crc else []
    whole = opened.whole
    problems = compare_replicas(whole.replicas, progress) if check_replicas else compare_unlisted(whole, progress)
    if strategies[1] is None:
        problems += _absences(source, whole, _matches(allow_missing))
    if problems:
        raise MismatchError(problems)
    opened = opened.warned(sample_replicas(whole))
    whole, renamed = _rename(_cast(opened.whole, dtype), names)
    scattered = None
    if strategies[1] is not None:
        scattered = scatter(whole, strategies[1], may_drop=_matches(allow_unused), may_miss=_matches(allow_missing))
    path = destination(output) if output is not None else _default_output(source, opened, format, scattered)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    options = OutputOptions(path, format, size)
    metadata = _metadata(source, opened)
    changes = Changes(metadata, renamed=renamed)
    if format == "iteration":
        plan = plan_iteration(iteration_facts(opened), whole.tensors, scattered, options, prefix, changes)
    elif scattered is None:
        plan = plan_output(opened.base, list(whole.tensors.items()), options, changes)
    else:
        plan = plan_ranks(opened.base, whole.tensors, scattered, options, prefix, metadata)
    told = ManifestInput("source", metadata["pet_surgery.source"], fingerprint(opened.base.tensors))
    plan = with_manifest(plan, "transform", [told], digest=digest)
    part = part_of(plan, selected, 0 if scattered is None else scattered.strategy.ranks)
    budget = make_budget(threads, parse_size(max_memory) if isinstance(max_memory, str) else max_memory)
    inputs = [source, *(strategy.path for strategy in strategies if strategy is not None)]
    inputs += dict.fromkeys(Path(file.path).parent for file in opened.base.sources if opened.ranks)
    check_destination(plan, inputs, force=force)
    report = _report(source, strategies, opened, whole, scattered, plan, part, budget)
    check_room((part or plan, report.bytes_written))
    if not dry_run:

        def approve(outcome: Outcome) -> None:
            if not allow_nonfinite:
                refuse_overflow(outcome, dtype)

        outcome = execute(
            plan,
            part=part,
            force=force,
            budget=budget,
            progress=progress,
            crc={} if check_crc else opened.base.crc,
            approve=approve,
            executor=executor,
        )
        checked += outcome.checked
        report = replace(report, resumed=tuple(outcome.resumed))
    chosen = None if selected is None else str(selected)
    report = replace(report, ranks=chosen, crc_checked=tuple(checked))
    return replace(report, dry_run=dry_run, seconds=time.monotonic() - started)


def _check_words(*options: tuple[str, str, tuple[str, ...]]) -> None:
    for option, word, known in options:
        if word not in known:
            raise UsageError(Problem(option, word, ", ".join(known)))


def _read_strategies(*paths: PathLike | None) -> list[Strategy | None]:
    """The strategies in these files; what is wrong with several of them is told at once."""
    outcomes = [None if path is None else _try_read(path) for path in paths]
    errors = [outcome for outcome in outcomes if isinstance(outcome, PetSurgeryError)]
    if errors:
        raise type(errors[0])(problem for error in errors for problem in error.problems)
    return [outcome for outcome in outcomes if not isinstance(outcome, PetSurgeryError)]


def _try_read(path: PathLike) -> Strategy | PetSurgeryError:
    try:
        return read_strategy(path)
    except PetSurgeryError as error:
        return error


def _absences(source: Path, whole: Gathered, may_miss: Callable[[str], bool]) -> list[Problem]:
    """The parameters of the source's strategy that a whole output would lack."""
    absent = [
        name
        for name in whole.absent
        if not (is_training_scalar(name) or split_optimizer_state(name, whole.tensors) or may_miss(name))
    ]
    more = len(absent) - _MAX_PROBLEMS
    remedy = "Copy the files again, or accept it with --allow-missing PATTERN"
    problems = [
        Problem(str(source), f"{name} in no file", "it, as the strategy has it", remedy)
        for name in absent[:_MAX_PROBLEMS]
    ]
    rest = [Problem(str(source), f"{more} more in no file", "all that the strategy has", remedy)] if more > 0 else []
    return problems + rest


def _matches(patterns: Sequence[str]) -> Callable[[str], bool]:
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_crcs(opened: Opened, progress: Progress) -> list[str]:
    """Check the CRCs of all files that have one; their paths."""
    for file, expected in opened.base.crc.items():
        check_crc(file, expected, progress)
    return [file.path for file in opened.base.crc]


def _metadata(source: Path, opened: Opened) -> dict[str, str]:
    metadata = {
        "pet_surgery.version": __version__,
        "pet_surgery.source": os.fsencode(source.name).decode(errors="replace"),
    }
    return metadata | ({"pet_surgery.step": opened.step} if opened.step else {})


def _cast(whole: Gathered, dtype: str) -> Gathered:
    if dtype == "keep":
        return whole
    tensors = {name: _cast_one(tensor, BY_NAME[dtype]) for name, tensor in whole.tensors.items()}
    return replace(whole, tensors=tensors)


def _cast_one(tensor: LazyTensor, dtype: DType) -> LazyTensor:
    return Cast(tensor, dtype) if tensor.dtype.is_float and tensor.dtype != dtype else tensor


def _rename(whole: Gathered, names: str) -> tuple[Gathered, dict[str, str]]:
    """Whole tensors under new names, and new name to old name."""
    tensors, renamed = rename_tensors(list(whole.tensors.items()), names)
    parts = {renamed.get(name, name): parts for name, parts in whole.parts.items()}
    unlisted = frozenset(renamed.get(name, name) for name in whole.unlisted)
    return Gathered(dict(tensors), parts, unlisted), {new: old for old, new in renamed.items()}


def _default_output(source: Path, opened: Opened, format: str, scattered: Scattered | None) -> Path:
    if (scattered is not None or format == "iteration") and not opened.base.is_folder:
        return Path(f"{source.stem}-transformed")
    return default_output(opened.base, format, "transformed")


def _report(
    source: Path,
    strategies: Sequence[Strategy | None],
    opened: Opened,
    whole: Gathered,
    scattered: Scattered | None,
    plan: Plan,
    part: Plan | None,
    budget: Budget,
) -> TransformReport:
    written = part or plan
    kept: list[NamedTensor] = [
        (name, tensor) for name, tensor in whole.tensors.items() if scattered is None or name in scattered.parts
    ]
    return TransformReport(
        output=str(plan.output),
        source=str(source),
        src_strategy=None if strategies[0] is None else str(strategies[0].path),
        dst_strategy=None if strategies[1] is None else str(strategies[1].path),
        step=opened.step,
        src_ranks=opened.ranks,
        dst_ranks=0 if scattered is None else scattered.strategy.ranks,
        format=next(plan.files()).format,
        files=tuple(entry.name for entry in written.entries),
        tensors=tuple(
            TransformedTensor(
                name=name,
                shape=tensor.shape,
                dtype=tensor.dtype.name,
                src_parts=whole.parts[name],
                dst_parts=(1,) * len(tensor.shape) if scattered is None else scattered.parts[name],
            )
            for name, tensor in kept
        ),
        dropped=(*opened.whole.left_out, *(() if scattered is None else scattered.dropped)),
        missing=opened.whole.absent if scattered is None else scattered.missing,
        warnings=opened.base.warnings,
        bytes_read=written.bytes_read(),
        bytes_written=written.bytes_written(),
        peak_memory_bytes=budget.peak_bytes,
        free_disk_bytes=free_bytes(plan.output),
    )
