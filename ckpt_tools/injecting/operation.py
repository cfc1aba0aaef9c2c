"""`inject`: put the parameters of a PET method into a saved network, as MindFormers would build it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckpt_tools.distributed import RANK_PREFIX, Scattered
from ckpt_tools.formats import check_crc as verify_crc
from ckpt_tools.injecting.companions import STRATEGY_NAME, companion_files, placed_beside, with_companions
from ckpt_tools.injecting.draft import Draft
from ckpt_tools.injecting.grafting import digest_grafted
from ckpt_tools.injecting.inputs import Inputs
from ckpt_tools.injecting.network_check import build_network, compare_network, load_into_network
from ckpt_tools.injecting.planning import Wanted, injected_output, plan_injected, scatter_injected
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import AddedParameter, InjectReport
from ckpt_tools.sizes import parse_size
from ckpt_tools.tensors.views import Cast
from ckpt_tools.writing.beside import check_beside
from ckpt_tools.writing.destination import check_destination, check_room, free_bytes
from ckpt_tools.writing.executors import check_executor
from ckpt_tools.writing.finite import refuse_overflow
from ckpt_tools.writing.manifest import ManifestInput, printable_name
from ckpt_tools.writing.memory import make_budget
from ckpt_tools.writing.parts import parse_ranks, part_of
from ckpt_tools.writing.plan import Plan, with_manifest
from ckpt_tools.writing.write import Outcome, execute
from surgery.errors import Problem, UsageError
from surgery.methods import Initialiser
from surgery.tuning import Tuning, parse_tuning, read_tuning

__all__ = ["inject"]

PathLike = str | os.PathLike[str]

_DTYPES = ("keep", "bf16", "fp16", "fp32")
_FORMATS = ("keep", "ckpt", "safetensors", "iteration")


def inject(
    base: PathLike,
    *,
    config: Any,
    adapter: PathLike | None = None,
    output: PathLike | None = None,
    seed: int = 0,
    only_delta: bool = False,
    check_network: bool = False,
    src_strategy: PathLike | None = None,
    adapter_strategy: PathLike | None = None,
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
    check_crc: bool = False,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    max_memory: int | str | None = None,
    digest: bool = True,
    executor: str = "local",
    progress: Progress = SILENT,
) -> InjectReport:
    """Write a base with the parameters that a configuration's method adds to its network.

    Args:
        base: A checkpoint without an adapter, in any format and layout.
        config: A run's YAML of either generation of MindFormers, a section of one, or PEFT's `adapter_config.json`; or
            what such a file holds, or a `surgery.methods.PetConfig`.
        adapter: A trained adapter, whose values the new parameters get.
        output: Where it goes; by default into the working folder, `<stem of base>-injected`.
        seed: With the name of each new parameter, what its values are drawn by.
        only_delta: Write the new parameters alone.
        check_network: Build the network that the YAML describes, and load the output into it.
        src_strategy: How the base's rank folders are cut: a strategy file, or a folder with those of all stages.
        adapter_strategy: The same for an adapter in rank folders.
        dst_strategy: How the output is cut for ranks; what it does not say of new parameters follows from their layers.
        prefix: What the names of the ranks' files begin with, as of `transform`.
        step: Which step of the base's ranks' files, as `EPOCH_STEP`, or which iteration; by default the latest.
        replicated: Patterns of names that the inputs' strategies may lack, since every rank holds all of them.
        dtype: `keep`, `bf16`, `fp16` or `fp32`: the type of all floating-point tensors of the output.
        format: `keep`, `ckpt`, `safetensors`, or `iteration`: a folder of MindFormers' Checkpoint 2.0.
        max_shard_size: Bytes, or a size such as `5GB`: shards of a folder.
        names: `keep`, `hf`, `mindformers`, or a JSON file of old and new names: the names that the base's weights get
            first, and that the configuration then speaks of.
        ranks: Write the files of these ranks alone, as `0-63` or numbers, and keep them for a call without `ranks`,
            which writes what is missing and publishes the output.
        allow_unused: Patterns of adapter keys that may have no place in the network.
        allow_nonfinite: Accept NaN and Inf in the adapter, and values that `dtype` cannot hold: they become Inf.
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
        CorruptInputError: An input breaks its format, or the configuration is wrong in itself.
        MismatchError: The inputs do not fit together, or the configuration selects no layer; all problems at once.
        VerificationError: The output is not what the network has.
        NonFiniteError: The adapter holds NaN or Inf, or a value is beyond the range of `dtype`.
        ResourceError: No room, no memory, an I/O error, no cluster.
        MissingExtraError: The executor's package, or MindSpore for `check_network`, is not installed.
        OutputExistsError: The output exists and `force` is not set.
    """
    started = time.monotonic()
    check_executor(executor)
    selected = None if ranks is None else parse_ranks(ranks)
    _check_options(seed, ("--dtype", dtype, _DTYPES), ("--format", format, _FORMATS))
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    wanted = Wanted(None if output is None else Path(output), format, size, prefix, only_delta)
    tuning = read_tuning(config) if isinstance(config, str | os.PathLike) else parse_tuning(config)
    inputs = Inputs.open(
        Path(base),
        None if adapter is None else Path(adapter),
        (src_strategy, adapter_strategy, dst_strategy),
        step,
        replicated,
        progress,
    )
    crc = {**inputs.base.base.crc, **(inputs.adapter.base.crc if inputs.adapter is not None else {})}
    checked = [file.path for file in crc] if check_crc else []
    if check_crc:
        for file, expected in crc.items():
            verify_crc(file, expected, progress)
    draft = Draft.of(tuning, inputs, names, dtype, seed, _matches(allow_unused), only_delta=only_delta)
    network = build_network(tuning) if check_network else None
    if network is not None:
        kept = frozenset(draft.weights)
        draft = replace(
            draft, warnings=draft.warnings + compare_network(network, draft.written, kept, only_delta=only_delta)
        )
    target = inputs.target
    scattered, covering = None, None
    if target is not None:
        scattered, covering = scatter_injected(
            target,
            draft.written,
            draft.added,
            draft.weights,
            draft.renamed(inputs.base.whole.unlisted),
            lambda name: only_delta and name in draft.weights,
        )
    path = injected_output(inputs.base, wanted, target)
    plan = plan_injected(
        inputs.base, draft.written, scattered, path, wanted, draft.changes(inputs, only_delta=only_delta)
    )
    files = companion_files(tuning, draft.adapter_fingerprint, draft.freezing, draft.network, covering)
    beside: dict[Path, bytes] = {}
    if plan.is_folder:
        plan = with_companions(plan, files)
    else:
        beside = placed_beside(plan.output, files)
    told = [
        ManifestInput("base", printable_name(inputs.base.base.path), draft.base_fingerprint),
        ManifestInput("config", printable_name(Path(tuning.source))),
    ]
    if inputs.adapter is not None:
        used = digest_grafted(inputs.adapter.base, draft.graft, allow_nonfinite=allow_nonfinite)
        told.append(ManifestInput("adapter", printable_name(inputs.adapter.base.path), used))
    plan = with_manifest(plan, "inject", told, digest=digest)
    part = part_of(plan, selected, 0 if target is None else target.ranks)
    budget = make_budget(threads, parse_size(max_memory) if isinstance(max_memory, str) else max_memory)
    given = [*inputs.paths(), *([Path(config)] if isinstance(config, str | os.PathLike) else [])]
    check_destination(plan, given, force=force)
    check_beside(beside, given, force=force)
    report = _report(tuning, inputs, draft, plan, part, scattered, seed=seed, only_delta=only_delta)
    report = replace(
        report,
        peak_memory_bytes=budget.peak_bytes,
        ranks=None if selected is None else str(selected),
        companions=tuple(map(str, beside or (plan.output / name for name in files))),
        crc_checked=tuple(checked),
        network_checked=check_network,
    )
    check_room((part or plan, report.bytes_written))
    if dry_run:
        return replace(report, dry_run=True, seconds=time.monotonic() - started)

    def approve(outcome: Outcome) -> None:
        if not allow_nonfinite:
            refuse_overflow(outcome, "its type" if dtype == "keep" else dtype)

    outcome = execute(
        plan,
        part=part,
        beside=beside,
        force=force,
        budget=budget,
        progress=progress,
        crc={} if check_crc else crc,
        approve=approve,
        executor=executor,
    )
    if network is not None and part is None:
        says_how_it_is_cut = scattered is None or format == "iteration"
        load_into_network(network, plan.output, None if says_how_it_is_cut else plan.output / STRATEGY_NAME)
    return replace(
        report,
        resumed=tuple(outcome.resumed),
        crc_checked=(*report.crc_checked, *outcome.checked),
        seconds=time.monotonic() - started,
    )


def _check_options(seed: int, *options: tuple[str, str, tuple[str, ...]]) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UsageError(Problem("--seed", repr(seed), "a whole number"))
    for option, word, known in options:
        if word not in known:
            raise UsageError(Problem(option, word, ", ".join(known)))


def _matches(patterns: Sequence[str]) -> Callable[[str], bool]:
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _origin(initialiser: Initialiser) -> str:
    has_scale = initialiser.kind in ("normal", "uniform", "he_uniform")
    return f"{initialiser.kind}({initialiser.scale:g})" if has_scale else initialiser.kind


def _report(
    tuning: Tuning,
    inputs: Inputs,
    draft: Draft,
    plan: Plan,
    part: Plan | None,
    scattered: Scattered | None,
    *,
    seed: int,
    only_delta: bool,
) -> InjectReport:
    """What is known before anything is written."""
    files = part or plan
    trained = [decision.parameter for decision in draft.freezing.decisions if decision.is_trained]
    trained_names = {parameter.name for parameter in trained}
    kept = [name for name in draft.written if name in draft.weights and name not in draft.graft.replaced]
    added = {one.parameter.name: one for one in draft.added}
    source, _, target = inputs.strategies
    return InjectReport(
        output=str(plan.output),
        base=str(inputs.base.base.path),
        base_fingerprint=draft.base_fingerprint,
        config=tuning.source,
        pet_type=tuning.config.pet_type,
        adapter=None if inputs.adapter is None else str(inputs.adapter.base.path),
        adapter_names=draft.graft.rule,
        seed=seed,
        only_delta=only_delta,
        src_strategy=None if source is None else str(source.path),
        dst_strategy=None if target is None else str(target.path),
        step=inputs.base.step,
        src_ranks=inputs.base.ranks,
        dst_ranks=0 if scattered is None else scattered.strategy.ranks,
        format=next(plan.files()).format,
        files=tuple(entry.name for entry in files.entries),
        companions=(),
        layers=tuple(layer.name for layer in draft.selection.layers),
        near_misses=draft.selection.near_misses,
        added=tuple(
            AddedParameter(
                name=name,
                layer=layer.name if (layer := added[name].layer) is not None else "",
                shape=tensor.shape,
                dtype=tensor.dtype.name,
                origin=draft.graft.keys.get(name) or _origin(added[name].parameter.initialiser),
                is_trained=name in trained_names,
            )
            for name, tensor in draft.network.items()
            if name in added
        ),
        replaced=tuple(draft.graft.replaced),
        copied=tuple(name for name in kept if not isinstance(draft.written[name], Cast)),
        cast=tuple(name for name in kept if isinstance(draft.written[name], Cast)),
        dropped=draft.dropped,
        trainable_parameters=len(trained),
        trainable_elements=sum(parameter.elements for parameter in trained),
        trainable_bytes=sum(parameter.nbytes for parameter in trained),
        total_elements=sum(tensor.size for tensor in draft.network.values()),
        network_checked=False,
        warnings=draft.warnings,
        bytes_read=files.bytes_read(),
        bytes_written=files.bytes_written(),
        peak_memory_bytes=0,
        free_disk_bytes=free_bytes(plan.output),
    )
