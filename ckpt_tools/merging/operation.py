"""`merge`: fold adapters into a base checkpoint, in one streaming pass."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_tools.distributed import RANK_PREFIX, Opened
from ckpt_tools.fingerprint import fingerprint
from ckpt_tools.formats import Checkpoint, check_crc
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.merging.accounting import BaseKeys, huggingface_config, quantisation_problem, sort_keys
from ckpt_tools.merging.adapters import Adapter, ScaleOption, load_adapter, scale_origin
from ckpt_tools.merging.belonging import other_bases
from ckpt_tools.merging.fold_plan import FoldPlan
from ckpt_tools.merging.folds import plan_folds
from ckpt_tools.merging.strategies import MergeStrategies, for_each, merge_output, plan_merged
from ckpt_tools.merging.undoing import check_patch_options, check_patch_place, draft_patch, with_patch
from ckpt_tools.patching import PatchDraft
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.renaming import rename_tensors
from ckpt_tools.reports import AdapterReport, DroppedTensor, FoldedWeight, MergeReport
from ckpt_tools.sizes import parse_size
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import LazyTensor, Statistics
from ckpt_tools.tensors.views import Cast, Checked
from ckpt_tools.writing.destination import check_destination, check_room
from ckpt_tools.writing.executors import check_executor
from ckpt_tools.writing.manifest import ManifestInput, printable_name
from ckpt_tools.writing.memory import Budget, make_budget
from ckpt_tools.writing.outputs import Changes, OutputOptions
from ckpt_tools.writing.parts import parse_ranks, part_of
from ckpt_tools.writing.plan import Plan, with_manifest
from ckpt_tools.writing.write import Outcome, execute
from surgery.errors import MismatchError, NonFiniteError, Problem, UsageError
from surgery.ties import untied_settings
from surgery.version import __version__

__all__ = ["merge"]

PathLike = str | os.PathLike[str]

_DTYPES = ("keep", "bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs of a merge, opened and told apart."""

    base: Checkpoint
    keys: BaseKeys
    config: Mapping[str, Any] | None
    adapters: tuple[Adapter, ...]
    is_combined: bool
    opened: Opened
    warnings: tuple[str, ...]

    @property
    def weights(self) -> dict[str, LazyTensor]:
        return {name: self.base.tensors[name] for name in self.keys.weights}


def merge(
    base: PathLike,
    *adapters: PathLike,
    output: PathLike | None = None,
    alpha: float | Sequence[float] | None = None,
    scaling: float | Sequence[float] | None = None,
    config: PathLike | Sequence[PathLike] | None = None,
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
    """Fold adapters into a base: W + sum of scaling * (B @ A), in float32, rounded once.

    Args:
        base: A checkpoint; without adapters, one that holds base and adapter.
        *adapters: Adapter files or folders; several on one weight are summed.
        output: Where the merged checkpoint goes; by default into the working folder, `<stem of base>-merged`.
        alpha: LoRA's alpha, one for all adapters or one for each. By default it is read from the adapter's
            configuration; there is no default value.
        scaling: The factor in front of B @ A itself, instead of alpha.
        config: A run's YAML or an adapter's configuration, instead of the one beside the adapter.
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
    if verify and selected is not None:
        remedy = "Give it to the last call, without --ranks, which publishes the output"
        raise UsageError(Problem("--verify and --ranks", "both", "a whole output", remedy))
    options = _scale_options(max(len(adapters), 1), alpha, scaling, config)
    each = for_each(len(adapters), "--adapter-strategy", adapter_strategy)
    strategies = MergeStrategies.read(src_strategy, each, dst_strategy, replicated)
    paths = [Path(path) for path in adapters]
    inputs = _open_inputs(Path(base), paths, strategies, step, options, allow_nonfinite, check_crc, progress)
    folds = plan_folds(
        inputs.weights,
        inputs.adapters,
        config=inputs.config,
        is_combined=inputs.is_combined,
        allow_unused=allow_unused,
    )
    problems = [*_base_problems(inputs), *folds.problems]
    if not (problems or allow_other_base):
        problems = other_bases(inputs.adapters, folds, inputs.weights)
    if problems:
        raise MismatchError(problems)
    target = None if dtype == "keep" else BY_NAME[dtype]
    draft = _Draft(inputs, folds, target, fingerprint(inputs.weights), check_finite=not allow_nonfinite)
    tensors, renamed = rename_tensors(draft.tensors(), names)
    path = merge_output(inputs.base, output, format, strategies.target)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    plan = plan_merged(
        inputs.opened, tensors, strategies.target, OutputOptions(path, format, size), prefix, draft.changes(renamed)
    )
    plan = with_manifest(plan, "merge", draft.manifest_inputs(), digest=digest)
    part = part_of(plan, selected, 0 if strategies.target is None else strategies.target.ranks)
    budget = make_budget(threads, parse_size(max_memory) if isinstance(max_memory, str) else max_memory)
    given = [inputs.base.path, *(adapter.path for adapter in inputs.adapters), *strategies.paths()]
    check_destination(plan, given, force=force)
    if patch_path is not None:
        read = [*given, *(Path(source.path) for source in plan.sources())]
        check_patch_place(patch_path, plan.places, read, force=force)
    chosen = None if selected is None else str(selected)
    report = replace(
        draft.report(plan, part, budget, renamed),
        ranks=chosen,
        unmerge_patch=None if patch_path is None else str(patch_path),
    )
    check_room(path, report.bytes_written, report.free_disk_bytes)
    if dry_run:
        return replace(report, dry_run=True, seconds=time.monotonic() - started)

    def approve(outcome: Outcome) -> None:
        if not allow_nonfinite:
            _refuse_nonfinite(outcome)
        if verify:
            from ckpt_tools.verifying.before_publishing import verify_written  # which builds on this package

            assert outcome.content is not None
            written = outcome.content if plan.is_folder else outcome.content / plan.output.name
            verify_written(written, inputs.base.tensors, inputs.weights, folds, renamed, strategies, budget, progress)

    patch = None if patch_path is None else draft.patch(patch_path, plan, renamed)
    with with_patch(patch, approve, force=force, budget=budget, progress=progress) as (approve_all, size):
        outcome = execute(
            plan,
            part=part,
            force=force,
            budget=budget,
            progress=progress,
            approve=approve_all,
            executor=executor,
            resume=patch is None,
        )
    return replace(
        _with_statistics(report, outcome),
        resumed=tuple(outcome.resumed),
        seconds=time.monotonic() - started,
        unmerge_patch_bytes=size,
        unmerge_patch_share=None if not size else size / sum(tensor.nbytes for tensor in inputs.weights.values()),
    )


class _Draft:
    """The output of a merge on its way from folds to a plan and a report."""

    def __init__(
        self, inputs: _Inputs, folds: FoldPlan, dtype: DType | None, base_fingerprint: str, *, check_finite: bool
    ) -> None:
        self._check_finite = check_finite
        self._inputs = inputs
        self._folds = folds
        self._dtype = dtype
        self._fingerprint = base_fingerprint

    def tensors(self) -> list[NamedTensor]:
        """The output's tensors under the base's names, in the base's order; what was untied comes last."""
        weights = self._inputs.weights
        named = [(name, self._result(name, tensor)) for name, tensor in weights.items()]
        return named + [(name, self._result(name, weights[tied])) for name, tied in self._folds.untied.items()]

    def _result(self, name: str, tensor: LazyTensor) -> LazyTensor:
        target = self._target(tensor)
        if name in self._folds.folds:
            return self._folds.folds[name].result(target)
        if tensor.dtype != target:
            return Cast(tensor, target)
        # Without the check, the kernel copies the bytes, which nobody sees.
        return Checked(tensor) if self._check_finite and tensor.dtype.is_float else tensor

    def _target(self, tensor: LazyTensor) -> DType:
        return self._dtype if self._dtype is not None and tensor.dtype.is_float else tensor.dtype

    def patch(self, path: Path, plan: Plan, renamed: Mapping[str, str]) -> PatchDraft:
        """What undoes the merge."""
        inputs = self._inputs
        return draft_patch(
            path,
            inputs.base,
            inputs.keys,
            inputs.adapters,
            self._folds,
            self.tensors(),
            renamed,
            output=plan.output,
            base_fingerprint=self._fingerprint,
            is_combined=inputs.is_combined,
            config_changes=bool(self.changes(renamed).config),
        )

    def changes(self, renamed: Mapping[str, str]) -> Changes:
        """What the other files of the output have to say differently."""
        config: dict[str, object] = {}
        known = self._inputs.config or {}
        if self._folds.untied:
            config |= untied_settings(known)
        if self._dtype is not None:
            words = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
            config |= {key: words[self._dtype.name] for key in ("torch_dtype", "dtype") if key in known}
        adapters = [
            {
                "file": adapter.path.name,
                "digest": adapter.digest,
                "scaling": sorted(self._scalings(adapter)),
            }
            for adapter in self._inputs.adapters
        ]
        metadata = {
            "pet_surgery.version": __version__,
            "pet_surgery.base": printable_name(self._inputs.base.path),
            "pet_surgery.base_fingerprint": self._fingerprint,
            "pet_surgery.adapters": json.dumps(adapters),
        }
        return Changes(metadata, config, {new: old for old, new in renamed.items()})

    def manifest_inputs(self) -> list[ManifestInput]:
        """What the manifest says of the inputs."""
        base = ManifestInput("base", printable_name(self._inputs.base.path), self._fingerprint)
        adapters = [
            ManifestInput(
                "adapter", printable_name(adapter.path), adapter.digest, tuple(sorted(self._scalings(adapter)))
            )
            for adapter in self._inputs.adapters
        ]
        return [base, *adapters]

    def _scalings(self, adapter: Adapter) -> set[float]:
        uses = (use for fold in self._folds.folds.values() for use in fold.uses)
        return {use.scaling for use in uses if use.adapter == str(adapter.path) and use.scaling is not None}

    def report(self, plan: Plan, part: Plan | None, budget: Budget, renamed: Mapping[str, str]) -> MergeReport:
        """What is known before anything is written."""
        written = part or plan
        inputs, folds = self._inputs, self._folds
        base = str(inputs.base.path)
        weights: list[FoldedWeight] = []
        copied: list[str] = []
        cast: list[str] = []
        for name, tensor in self.tensors():
            new_name = renamed.get(name, name)
            if name in folds.folds:
                uses = tuple(folds.folds[name].uses)
                tied = folds.untied.get(name, name)
                weights.append(FoldedWeight(new_name, tied, tensor.shape, tensor.dtype.name, uses))
            else:
                (cast if isinstance(tensor, Cast) else copied).append(new_name)
        states = [DroppedTensor(name, base, role.value) for name, role in inputs.keys.states.items()]
        # A combined checkpoint's states are its adapter's too.
        dropped = dict.fromkeys([*states, *(entry for entry in folds.dropped if not inputs.is_combined)])
        adapters = tuple(
            AdapterReport(
                path=str(adapter.path),
                digest=adapter.digest,
                config=scale_origin(adapter),
                families=adapter.families,
                names=rule,
            )
            for adapter, rule in zip(inputs.adapters, folds.rules, strict=True)
        )
        existing = next(path for path in (plan.output, *plan.output.absolute().parents) if path.exists())
        return MergeReport(
            output=str(plan.output),
            base=base,
            base_fingerprint=self._fingerprint,
            adapters=adapters,
            format=next(plan.files()).format,
            files=tuple(entry.name for entry in written.entries),
            weights=tuple(weights),
            copied=tuple(copied),
            cast=tuple(cast),
            dropped=tuple(dropped),
            warnings=(*inputs.warnings, *folds.warnings),
            bytes_read=written.bytes_read(),
            bytes_written=written.bytes_written(),
            peak_memory_bytes=budget.peak_bytes,
            free_disk_bytes=shutil.disk_usage(existing).free,
        )


def _scale_options(
    count: int,
    alpha: float | Sequence[float] | None,
    scaling: float | Sequence[float] | None,
    config: PathLike | Sequence[PathLike] | None,
) -> list[ScaleOption]:
    alphas, scalings, configs = (
        for_each(count, "--alpha", alpha),
        for_each(count, "--scaling", scaling),
        for_each(count, "--config", config),
    )
    if alpha is not None and scaling is not None and any(alphas) and any(scalings):
        raise UsageError(Problem("--alpha and --scaling", "both", "one of the two"))
    for option, values in (("--alpha", alphas), ("--scaling", scalings)):
        for value in values:
            if value is not None and (value == 0 or not math.isfinite(value)):
                raise MismatchError(Problem(option, f"{value:g}", "a finite number other than 0"))
    return [
        ScaleOption(a, s, Path(c) if c is not None else None) for a, s, c in zip(alphas, scalings, configs, strict=True)
    ]


def _open_inputs(
    base_path: Path,
    adapter_paths: Sequence[Path],
    strategies: MergeStrategies,
    step: str | None,
    options: Sequence[ScaleOption],
    allow_nonfinite: bool,
    with_crc: bool,
    progress: Progress,
) -> _Inputs:
    opened, others = strategies.open(base_path, adapter_paths, step, progress)
    base, files = opened.base, [other.base for other in others]
    if with_crc:
        for file, expected in (item for checkpoint in (base, *files) for item in checkpoint.crc.items()):
            check_crc(file, expected, progress)
    keys = sort_keys(base)
    is_combined = not files
    adapters = tuple(
        load_adapter(file, option, is_combined=is_combined, allow_nonfinite=allow_nonfinite)
        for file, option in zip(files or [base], options, strict=True)
    )
    warnings = tuple(warning for checkpoint in (base, *files) for warning in checkpoint.warnings)
    return _Inputs(base, keys, huggingface_config(base), adapters, is_combined, opened, warnings)


def _base_problems(inputs: _Inputs) -> list[Problem]:
    problems = []
    quantised = quantisation_problem(inputs.base, inputs.config)
    if quantised is not None:
        problems.append(quantised)
    if inputs.keys.adapter and not inputs.is_combined:
        problems.append(
            Problem(
                f"{inputs.base.path}, {inputs.keys.adapter[0]}",
                f"{len(inputs.keys.adapter)} adapter parameters in the base, and separate adapters besides",
                "a base without an adapter, or no other adapter",
                "Merge the combined checkpoint by itself first: pet-merge BASE",
            )
        )
    return problems


def _refuse_nonfinite(outcome: Outcome) -> None:
    problems = []
    for name, measured in outcome.statistics.items():
        if measured.nonfinite_input:
            found = f"{measured.nonfinite_input} NaN or Inf in the base"
            remedy = "The file is damaged or its training diverged: take another, or accept it with --allow-nonfinite"
        elif measured.nonfinite_output:
            found = f"{measured.nonfinite_output} elements beyond the range of the output type, or NaN"
            remedy = "Choose a wider --dtype, or accept it with --allow-nonfinite"
        else:
            continue
        problems.append(Problem(name, found, "finite values", remedy))
    if problems:
        raise NonFiniteError(problems)


def _with_statistics(report: MergeReport, outcome: Outcome) -> MergeReport:
    statistics = outcome.statistics
    weights = tuple(_measured(weight, statistics.get(weight.name)) for weight in report.weights)
    idle = [weight.name for weight in weights if weight.delta_norm == 0.0]
    swallowed = [weight.name for weight in weights if weight.delta_norm and weight.unchanged_share == 1.0]
    warnings = report.warnings
    if idle:
        warnings += (f"{len(idle)} weights did not change, since the delta is zero: {idle[0]}, ...",)
    if swallowed:
        found = f"{len(swallowed)} weights did not change, since rounding swallowed the delta: {swallowed[0]}, ..."
        warnings += (found,)
    return replace(report, weights=weights, warnings=warnings)


def _measured(weight: FoldedWeight, statistics: Statistics | None) -> FoldedWeight:
    if statistics is None or not statistics.elements:
        return weight
    weight_norm, delta_norm = math.sqrt(statistics.weight_square), math.sqrt(statistics.delta_square)
    return replace(
        weight,
        weight_norm=weight_norm,
        delta_norm=delta_norm,
        relative_delta=delta_norm / weight_norm if weight_norm else None,
        unchanged_share=statistics.unchanged / statistics.elements,
    )
