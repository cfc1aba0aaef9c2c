"""`split`: export what training changed, alone, from any checkpoint that holds it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ckpt_tools.distributed import Opened, compare_unlisted, open_whole, sample_replicas
from ckpt_tools.formats import Checkpoint
from ckpt_tools.layout import read_strategy
from ckpt_tools.merging.adapters import A_ROLES
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import SplitReport
from ckpt_tools.sizes import parse_size
from ckpt_tools.splitting.adapter_output import AdapterOptions
from ckpt_tools.splitting.draft import Draft
from ckpt_tools.splitting.extracting import ExtractionOptions, extract_delta, working_bytes
from ckpt_tools.splitting.facts import Scales, find_scales
from ckpt_tools.splitting.selection import Choice, select
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.writing.beside import check_beside
from ckpt_tools.writing.destination import check_destination, check_room, destination
from ckpt_tools.writing.digests import digest_tensors
from ckpt_tools.writing.finite import refuse_overflow
from ckpt_tools.writing.leftovers import sweep_published
from ckpt_tools.writing.manifest import ManifestInput, printable_name
from ckpt_tools.writing.memory import Budget, make_budget
from ckpt_tools.writing.plan import Plan, with_manifest
from ckpt_tools.writing.write import Outcome, execute
from surgery.errors import MismatchError, PetSurgeryError, Problem, ResourceError, UsageError
from surgery.naming import Role, classify

__all__ = ["split"]

PathLike = str | os.PathLike[str]

_FORMATS = ("keep", "ckpt", "safetensors", "peft", "mindformers", "slora")
_DTYPES = ("keep", "bf16", "fp16", "fp32")


def split(
    tuned: PathLike,
    *,
    output: PathLike | None = None,
    pet_type: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    alpha: float | None = None,
    config: PathLike | None = None,
    format: str = "keep",
    dtype: str = "keep",
    names: str = "",
    remainder: PathLike | None = None,
    base: PathLike | None = None,
    rank: int | None = None,
    energy: float | None = None,
    embeddings: str = "save",
    seed: int = 0,
    src_strategy: PathLike | None = None,
    base_strategy: PathLike | None = None,
    step: str | None = None,
    replicated: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    max_memory: int | str | None = None,
    digest: bool = True,
    executor: str = "local",
    progress: Progress = SILENT,
) -> SplitReport:
    """Write the trained delta of a checkpoint as an adapter.

    Args:
        tuned: A checkpoint that holds an adapter, with or without its base: a file, a folder, folders of ranks with
            `src_strategy`, an iteration of Checkpoint 2.0.
        output: Where the adapter goes: a folder, or a single file where the path has the suffix of one. By default
            `<stem of tuned>-adapter` in the working folder.
        pet_type: `lora`, `ptuning2`, `prefixtuning`, `adapter`, `low_rank_adapter` or `bitfit`; by default what the
            names show.
        include: Globs (`fnmatch`) of parameters that are part of the delta besides: weights that were trained whole.
        exclude: Globs of parameters that are not.
        alpha: LoRA's alpha, for the configuration. By default it is that of the configuration beside the source, whose
            other facts (rsLoRA, modules that were saved whole) hold in either case.
        config: A run's YAML or an adapter's configuration, instead of the one beside the source.
        format: `keep`, `ckpt`, `safetensors`; `peft`: a folder that PEFT and vLLM load; `mindformers`: names of MindPet
            and MindFormers; `slora`: a folder for MindFormers' SLoRA.
        dtype: `keep`, `bf16`, `fp16` or `fp32`: the type of all floating-point tensors of the adapter.
        names: `keep`, `hf`, `mindformers`, or a JSON file of the base's old and new names; by default what the format
            asks for.
        remainder: Where the rest goes, which is the base.
        base: What `tuned` was fully fine-tuned from: a LoRA is extracted from the difference.
        rank: The rank of each extracted layer.
        energy: Or the least rank that keeps this share, 0 to 1, of the sum of squares of a layer's change; 1 keeps all
            that is more than rounding.
        embeddings: `save`, `extract` or `skip`: what of embeddings and output heads that changed.
        seed: Of the randomised SVD.
        src_strategy: How rank folders are cut.
        base_strategy: The same for the base.
        step: Which step of rank folders, as `EPOCH_STEP`, or which iteration; by default the latest.
        replicated: Patterns of names that the strategy may lack, since every rank holds all of them.
        force: Replace existing outputs.
        dry_run: Plan and check, write nothing.
        threads: By default one for each core.
        max_memory: Bytes, or a size such as `1GiB`: anonymous memory at most.
        digest: Put the digest of each of the output's tensors into its manifest.
        executor: `local`, `ray` or `ray://HOST:PORT`.
        progress: What is told how far it is.

    Raises:
        UsageError: Arguments contradict each other.
        InputMissingError: An input is not there.
        CorruptInputError: An input breaks its format.
        MismatchError: There is no delta, it does not fit together, or alpha is needed and unknown.
        NonFiniteError: A value is beyond the range of `dtype`; or with `base` a matrix changed by NaN or Inf.
        ResourceError: No room, no memory, an I/O error.
        OutputExistsError: An output exists and `force` is not set.
    """
    started = time.monotonic()
    _check_word("--format", format, _FORMATS)
    _check_word("--dtype", dtype, _DTYPES)
    source = Path(tuned)
    choice = Choice(pet_type, tuple(include), tuple(exclude))
    options = AdapterOptions(_output(source, output), format, names)
    limit = parse_size(max_memory) if isinstance(max_memory, str) else max_memory
    budget = make_budget(threads, limit)
    strategies = [path for path in (src_strategy, base_strategy, config) if path is not None]
    inputs = [source, *([] if base is None else [Path(base)]), *map(Path, strategies)]

    def run(work: Draft, peak_bytes: int = 0) -> SplitReport:
        plans = [work.adapter_plan()]
        if remainder is not None:
            plans.append(work.remainder_plan(destination(remainder)))
        told = ManifestInput("source", printable_name(source), work.fingerprint)
        plans = [with_manifest(plan, "split", [told], digest=digest) for plan in plans]
        sweep_published(*(plan.output for plan in plans))
        may_replace = force or _is_left_over(plans, budget, progress)
        for plan in plans:
            check_destination(plan, inputs, force=may_replace)
        beside = work.files_beside(plans[0])
        _check_apart(plans, beside)
        check_beside(beside, inputs, force=may_replace)
        report = work.report(plans, max(budget.peak_bytes, peak_bytes))
        check_room(*((plan, plan.bytes_written()) for plan in plans))

        def approve(outcome: Outcome) -> None:
            refuse_overflow(outcome, dtype, "Choose another --dtype")

        if not dry_run:
            resumed: list[str] = []
            for plan in plans:
                outcome = execute(
                    plan,
                    beside=beside if plan is plans[0] else {},
                    force=may_replace,
                    budget=budget,
                    progress=progress,
                    approve=approve,
                    executor=executor,
                )
                resumed += outcome.resumed
            report = replace(report, resumed=tuple(resumed))
        return replace(report, dry_run=dry_run, seconds=time.monotonic() - started)

    _check_extraction(base, rank, energy, embeddings, alpha, config, remainder, base_strategy, choice)
    opened = _open(
        source, choice, src_strategy, step, replicated, progress, with_rest=remainder is not None or base is not None
    )
    if base is None:
        scales = _scales(opened.base, alpha, config)
        if scales.config is not None:
            choice = replace(choice, saved_modules=scales.config.modules_to_save)
        selected = select(opened.base.tensors, choice, str(source))
        return run(Draft(opened, opened.base.tensors, selected, options, scales, dtype))
    before = _open(Path(base), choice, base_strategy, None, replicated, progress, with_rest=True)
    target = BY_NAME["fp32" if dtype == "keep" else dtype]
    extraction = ExtractionOptions(
        rank, 1.0 if energy is None else energy, embeddings, tuple(exclude), seed, target, budget.threads
    )
    peak_bytes = Budget(0).peak_bytes + working_bytes(opened, extraction)
    if limit is not None and peak_bytes > limit:
        least = f"at least {peak_bytes} bytes, for the largest layer, which is extracted whole"
        raise ResourceError(Problem("--max-memory", f"{limit} bytes", least))
    with extract_delta(opened, before, extraction, progress) as found:
        scales = Scales(None, None, by_layer=found.alphas)
        work = Draft(opened, found.tensors, found.selected(), options, scales, dtype, found)
        return replace(run(work, peak_bytes), base=str(base))


def _check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UsageError(Problem(option, word, ", ".join(known)))


def _check_extraction(
    base: PathLike | None,
    rank: int | None,
    energy: float | None,
    embeddings: str,
    alpha: float | None,
    config: PathLike | None,
    remainder: PathLike | None,
    base_strategy: PathLike | None,
    choice: Choice,
) -> None:
    """Options that say nothing with, or without, an extraction."""
    _check_word("--embeddings", embeddings, ("save", "extract", "skip"))
    if base is None:
        given = {"--rank": rank, "--energy": energy, "--base-strategy": base_strategy}
        for option, value in given.items():
            if value is not None:
                raise UsageError(Problem(option, str(value), "--base BASE, to extract from", "Give the base, too"))
        return
    if (rank is None) == (energy is None):
        found = "neither --rank nor --energy" if rank is None else "--rank and --energy"
        raise UsageError(Problem("--base", found, "one of the two", "Say how much of the change to keep"))
    if (rank is not None and rank < 1) or (energy is not None and not 0 < energy <= 1):
        raise UsageError(
            Problem("--rank or --energy", f"{rank or energy}", "a rank of 1 and more, an energy in (0, 1]")
        )
    for option, value in (("--alpha", alpha), ("--config", config), ("--remainder", remainder)):
        if value is not None:
            remedy = "Alpha is the rank, and the rest is BASE: leave it out"
            raise UsageError(Problem(option, "with --base", "a checkpoint that holds an adapter", remedy))
    if choice.pet_type or choice.include:
        raise UsageError(Problem("--pet-type and --include", "with --base", "--exclude alone", "Leave them out"))


def _open(
    source: Path,
    choice: Choice,
    strategy: PathLike | None,
    step: str | None,
    replicated: Sequence[str],
    progress: Progress,
    *,
    with_rest: bool,
) -> Opened:
    def may_leave_out(name: str) -> bool:
        """A strategy of trainable parameters alone, MindFormers' default, is enough for the delta alone."""
        parameter = classify(name)
        return parameter.role is Role.OPTIMIZER or (not with_rest and not choice.takes(parameter, ()))

    opened = open_whole(
        source,
        None if strategy is None else read_strategy(strategy),
        step=step,
        replicated=replicated,
        may_leave_out=may_leave_out,
    )
    differences = compare_unlisted(opened.whole, progress)
    if differences:
        raise MismatchError(differences)
    return opened.warned(sample_replicas(opened.whole))


def _scales(source: Checkpoint, alpha: float | None, config: PathLike | None) -> Scales:
    if alpha is not None and config is not None:
        raise UsageError(Problem("--alpha and --config", "both", "one of the two"))
    if not any(classify(name).role in A_ROLES for name in source.tensors):
        return Scales(None, None)
    return find_scales(source, alpha, None if config is None else Path(config))


def _output(source: Path, output: PathLike | None) -> Path:
    if output is not None:
        return destination(output)
    return Path(f"{source.resolve().name if source.is_dir() else source.stem}-adapter")


def _check_apart(plans: Sequence[Plan], beside: Iterable[Path]) -> None:
    """No output takes the place of another, nor of what goes beside it."""
    if len(plans) > 1:
        ones = [Path(os.path.realpath(path)) for path in (*plans[0].places, *beside)]
        others = [Path(os.path.realpath(path)) for path in plans[1].places]
        for one, other in itertools.product(ones, others):
            if one == other or one in other.parents or other in one.parents:
                raise UsageError(
                    Problem(f"--remainder {plans[1].output}", f"it lies in or on -o {one}", "a place of its own")
                )


def _is_left_over(plans: Sequence[Plan], budget: Budget, progress: Progress) -> bool:
    """Whether a run of these very plans ended between its two outputs: its adapter is this one's to the last bit."""
    adapter, *rest = plans
    if not rest or not os.path.lexists(adapter.output) or os.path.lexists(rest[0].output):
        return False
    from ckpt_tools.verifying.manifests import read_manifest  # whose package needs what merging needs

    try:
        found = read_manifest(adapter.output)
        digests = digest_tensors(dict(adapter.tensors()), budget, progress)
    except PetSurgeryError:
        return False
    known = adapter.with_identity().manifest
    return known is not None and found.plan == f"sha256:{known.plan}" and found.digests == digests
