"""`combine`: adapters to one adapter, without a base; or one adapter at another rank."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ckpt_tools.combining import Combination, bias_problem, combine_layers, layer_problems, stand_ins
from ckpt_tools.combining.foretold import peak_bytes
from ckpt_tools.joining.belonging import base_of
from ckpt_tools.joining.draft import JoinDraft
from ckpt_tools.joining.matching import Joined, join_adapters
from ckpt_tools.merging.adapters import Adapter, configuration_files, load_adapter
from ckpt_tools.merging.inputs import check_crcs, scale_options
from ckpt_tools.merging.strategies import MergeStrategies, for_each
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import CombineReport
from ckpt_tools.sizes import given_bytes
from ckpt_tools.splitting.adapter_output import AdapterOptions
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import LazyTensor, files_of
from ckpt_tools.writing.beside import check_beside
from ckpt_tools.writing.claims import check_claimable
from ckpt_tools.writing.destination import check_destination, check_room, destination, nearest_folder
from ckpt_tools.writing.executors import check_executor
from ckpt_tools.writing.finite import refuse_overflow, wider_type
from ckpt_tools.writing.leftovers import sweep_published
from ckpt_tools.writing.manifest import ManifestInput, printable_name
from ckpt_tools.writing.memory import make_budget
from ckpt_tools.writing.plan import Plan, with_manifest
from ckpt_tools.writing.scratch import scratch_folder, sweep_scratch
from ckpt_tools.writing.write import execute
from surgery.errors import MismatchError, Problem, UsageError

__all__ = ["combine"]

PathLike = str | os.PathLike[str]

_FORMATS = ("keep", "ckpt", "safetensors", "peft", "mindformers", "slora")
_DTYPES = ("keep", "bf16", "fp16", "fp32")


def combine(
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
    adapter_strategy: PathLike | Sequence[PathLike] | None = None,
    step: str | None = None,
    replicated: Sequence[str] = (),
    dtype: str = "keep",
    format: str = "keep",
    names: str = "",
    allow_other_base: bool = False,
    check_crc: bool = True,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    max_memory: int | str | None = None,
    digest: bool = True,
    executor: str = "local",
    progress: Progress = SILENT,
) -> CombineReport:
    """Write the combination of some adapters as an adapter, whose scale is 1: its alpha is its rank.

    Args:
        *adapters: Adapter files or folders, of any ranks, scales, targets, spellings and formats; the first one decides
            on the spelling of the result.
        output: Where it goes: a folder, or a single file where the path has the suffix of one. By default
            `<stem of the first>-combined` in the working folder.
        alpha: As of `merge`.
        scaling: As of `merge`.
        config: As of `merge`.
        weight: As of `merge`.
        method: As of `merge`.
        density: As of `merge`.
        majority_sign: As of `merge`.
        seed: As of `merge`.
        resize_rank: The rank of each layer, lower or higher, by its singular values.
        energy: Or the least rank that keeps this share of a layer's squares, 0 to 1.
        adapter_strategy: As of `merge`.
        step: As of `merge`.
        replicated: As of `merge`.
        dtype: `keep`, the adapters' type, or float32 where they have several; `bf16`, `fp16` or `fp32`.
        format: As of `split`.
        names: As of `split`.
        allow_other_base: Accept adapters that say that they were trained on different bases.
        check_crc: As of `merge`.
        force: Replace an existing output.
        dry_run: Combine in a temporary folder, so that the report is complete, and write nothing.
        threads: By default one for each core.
        max_memory: Bytes, or a size such as `1GiB`: anonymous memory at most.
        digest: Put the digest of each of the output's tensors into its manifest.
        executor: `local`, `ray` or `ray://HOST:PORT`: who writes the file; this process combines.
        progress: What is told how far it is.

    Raises:
        UsageError: Arguments contradict each other.
        InputMissingError: An input is not there.
        CorruptInputError: An input breaks its format.
        MismatchError: The adapters cannot be combined; all problems at once.
        NonFiniteError: NaN or Inf in an adapter, or a value beyond the range of `dtype`.
        ResourceError: No room, no memory, an I/O error.
        OutputExistsError: An output exists and `force` is not set.
    """
    started = time.monotonic()
    how = Combination.of(method, density, majority_sign, seed, resize_rank, energy)
    _check_words(format, dtype, len(adapters))
    check_executor(executor)
    options = scale_options(len(adapters), alpha, scaling, config, weight)
    each = for_each(len(adapters), "--adapter-strategy", adapter_strategy)
    strategies = MergeStrategies.read(None, each, None, replicated)
    limit = given_bytes(max_memory)
    budget = make_budget(threads, limit)
    paths = [Path(path) for path in adapters]
    opened = strategies.open_adapters(paths, step, progress)
    if check_crc:
        check_crcs((one.base for one in opened), progress)
    loaded = [load_adapter(one.base, option, is_combined=False) for one, option in zip(opened, options, strict=True)]
    joined = join_adapters(loaded)
    layers = [layer.to_combine() for layer in joined.layers.values()]
    biases = (bias_problem(layer.layer, how) for layer in joined.layers.values() if layer.biases)
    problems = [*joined.problems, *(problem for problem in biases if problem is not None)]
    problems = problems or layer_problems(layers, how)
    if problems:
        raise MismatchError(problems)
    fingerprint, warnings = base_of(loaded, joined, allow_other_base=allow_other_base)
    path = _output(paths[0], output)
    kept = _type_of(joined) if dtype == "keep" else BY_NAME[dtype]
    options_of_output = AdapterOptions(path, format, names)
    casts = dtype != "keep"

    def draft_of(matrices: Mapping[str, tuple[LazyTensor, LazyTensor]]) -> tuple[JoinDraft, Plan]:
        draft = JoinDraft(loaded, joined, matrices, how, kept, options_of_output, opened, fingerprint, casts=casts)
        return draft, with_manifest(draft.plan(), "combine", _manifest_inputs(loaded), digest=digest)

    # Before hours of work, as far as it is known what they give.
    draft, plan = draft_of(stand_ins(layers, how, kept))
    given = [*paths, *strategies.paths(), *configuration_files(loaded)]
    read = {source for tensor in joined.tensors() for source in files_of(tensor)}
    # A cluster's machines read what was combined, so it lies where the output does.
    place = None if executor == "local" or dry_run else nearest_folder(path)
    sweep_published(path)
    sweep_scratch(place)
    check_destination(plan, given, force=force, also_read=read)
    check_beside(draft.files_beside(plan), given, force=True)  # whose content may be what lies there, and is not known
    if not dry_run:
        check_claimable(plan.output, is_folder=plan.is_folder, force=force)
    with scratch_folder(place) as folder:
        combined = combine_layers(layers, how, kept, folder, budget, progress, max_memory=limit)
        draft, plan = draft_of({name: (one.a, one.b) for name, one in combined.items()})
        beside = draft.files_beside(plan)
        check_beside(beside, given, force=force)
        reports = [one.report for one in combined.values()]
        report = draft.report(plan, reports, warnings, max(budget.peak_bytes, peak_bytes(layers, how, budget)))
        check_room((plan, report.bytes_written))
        if dry_run:
            return replace(report, dry_run=True, seconds=time.monotonic() - started)
        execute(
            plan,
            beside=beside,
            force=force,
            budget=budget,
            progress=progress,
            approve=lambda outcome: refuse_overflow(outcome, kept.name, wider_type(kept)),
            executor=executor,
            resume=False,  # the temporary folder is another one in each run
        )
    return replace(report, seconds=time.monotonic() - started)


def _check_words(format: str, dtype: str, count: int) -> None:
    if not count:
        raise UsageError(Problem("adapters", "none", "one or more"))
    for option, word, known in (("--format", format, _FORMATS), ("--dtype", dtype, _DTYPES)):
        if word not in known:
            raise UsageError(Problem(option, word, ", ".join(known)))


def _type_of(joined: Joined) -> DType:
    """The type that all matrices have; float32 where they differ."""
    types = {tensor.dtype for layer in joined.layers.values() for part in layer.parts for tensor in (part.a, part.b)}
    return types.pop() if len(types) == 1 else BY_NAME["fp32"]


def _manifest_inputs(adapters: Sequence[Adapter]) -> list[ManifestInput]:
    return [ManifestInput("adapter", printable_name(one.path), one.digest, weight=one.weight) for one in adapters]


def _output(first: Path, output: PathLike | None) -> Path:
    if output is not None:
        return destination(output)
    return Path(f"{first.resolve().name if first.is_dir() else first.stem}-combined")
