"""`verify`: prove that a merged checkpoint is base plus adapters."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ckpt_tools.combining import Combination
from ckpt_tools.distributed import open_whole
from ckpt_tools.layout import read_strategy
from ckpt_tools.merging.combined import combined_folds
from ckpt_tools.merging.draft import adapter_report
from ckpt_tools.merging.inputs import checked_folds, open_inputs, scale_options
from ckpt_tools.merging.strategies import MergeStrategies, for_each
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import DroppedTensor, VerifyReport
from ckpt_tools.sizes import given_bytes
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.verifying.matching import expect, find_names, match
from ckpt_tools.verifying.outcome import problems_of
from ckpt_tools.verifying.proof import Terms, prove
from ckpt_tools.verifying.sampling import chance_of_share
from ckpt_tools.writing.memory import make_budget
from surgery.combining import METHODS
from surgery.errors import Problem, UsageError, VerificationError
from surgery.states import split_optimizer_state

__all__ = ["verify"]

PathLike = str | os.PathLike[str]

_DTYPES = ("auto", "bf16", "fp16", "fp32")


def verify(
    base: PathLike,
    *adapters: PathLike,
    merged: PathLike,
    alpha: float | Sequence[float] | None = None,
    scaling: float | Sequence[float] | None = None,
    config: PathLike | Sequence[PathLike] | None = None,
    weight: float | Sequence[float] | None = None,
    method: str = "cat",
    density: float | None = None,
    majority_sign: str | None = None,
    resize_rank: int | None = None,
    energy: float | None = None,
    src_strategy: PathLike | None = None,
    adapter_strategy: PathLike | Sequence[PathLike] | None = None,
    merged_strategy: PathLike | None = None,
    step: str | None = None,
    replicated: Sequence[str] = (),
    dtype: str = "auto",
    names: str = "auto",
    allow_unused: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_other_base: bool = False,
    strict: bool = False,
    max_ulp: float | None = None,
    sample: float = 1.0,
    seed: int = 0,
    check: bool = True,
    check_crc: bool = True,
    threads: int | None = None,
    max_memory: int | str | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Prove that a merged checkpoint is base plus adapters, in float64 and apart from the arithmetic of `merge`.

    Args:
        base: A checkpoint; without adapters, one that holds base and adapter.
        *adapters: What was merged, in order.
        merged: The result to be verified, in any format and layout.
        alpha: As of `merge`.
        scaling: As of `merge`.
        config: As of `merge`.
        weight: As of `merge`.
        method: As of `merge`. What is not a sum is combined again, by the same functions, and then proved to be folded.
        density: As of `merge`.
        majority_sign: As of `merge`.
        resize_rank: As of `merge`.
        energy: As of `merge`.
        src_strategy: How the base's rank folders are cut.
        adapter_strategy: The same for adapters, one for all or one for each.
        merged_strategy: The same for the merged checkpoint.
        step: As of `merge`.
        replicated: As of `merge`; for the merged checkpoint too.
        dtype: The type that all floating-point tensors must have; `auto` for the base's, or the one that all have.
        names: The merged checkpoint's, made of the base's: `auto`, `keep`, `hf`, `mindformers`, or a JSON file.
        allow_unused: Patterns of adapter keys that may have no home in the base.
        allow_missing: Patterns of names that the merged checkpoint may lack.
        allow_other_base: Accept a base that is not the one whose fingerprint an adapter has.
        strict: Accept only sums in float32, rounded once, as of `merge`; otherwise also those of programs that round
            A, B, their product and the scaling to the coarsest type of the inputs.
        max_ulp: How far a weight may be from the exact value, in units in the last place of that; instead of `strict`.
        sample: The share of each tensor that is read, above 0 to 1; at least one stretch of each.
        seed: What the sample is drawn by, with the tensors' names; and with methods that drop at random, as of `merge`,
            what these drew by.
        check: Raise where it is not so; otherwise the report says it.
        check_crc: Check the CRC-32 of base and adapters that have one, where no sample is asked for; costs a read of
            them.
        threads: By default one for each core.
        max_memory: Bytes, or a size such as `1GiB`: anonymous memory at most.
        progress: What is told how far it is.

    Raises:
        VerificationError: The merged checkpoint is something else; with `check`.
        UsageError: Arguments contradict each other.
        MismatchError: Base and adapters do not fit together.
        PetSurgeryError: An input is missing or corrupt, as of `merge`.
    """
    started = time.monotonic()
    _check_arguments(dtype, strict, max_ulp, sample)
    drawn = seed if method in METHODS and METHODS[method].prune == "random" else None
    how = Combination.of(method, density, majority_sign, drawn, resize_rank, energy)
    limit = given_bytes(max_memory)
    budget = make_budget(threads, limit)
    options = scale_options(max(len(adapters), 1), alpha, scaling, config, weight)
    each = for_each(len(adapters), "--adapter-strategy", adapter_strategy)
    strategies = MergeStrategies.read(src_strategy, each, None, replicated)
    paths = [Path(path) for path in adapters]
    inputs = open_inputs(
        Path(base),
        paths,
        strategies,
        step,
        options,
        progress,
        allow_nonfinite=True,  # what the adapter has of them, the result must have
        with_crc=check_crc and sample >= 1,
    )
    folds = checked_folds(inputs, allow_unused, allow_other_base=allow_other_base)
    opened = open_whole(
        Path(merged),
        None if merged_strategy is None else read_strategy(merged_strategy),
        replicated=replicated,
        may_leave_out=lambda name: split_optimizer_state(name) is not None,
        option="--merged-strategy",
    )
    found = opened.base.tensors
    chosen, expected = find_names(expect(inputs.weights, folds), found, names)
    with combined_folds(folds, how, None, budget, progress, max_memory=limit):  # which changes what is expected too
        target = None if dtype == "auto" else BY_NAME[dtype]
        comparable, states, offenders = match(
            expected, found, inputs.base.tensors, dtype=target, allow_missing=allow_missing
        )
        terms = Terms(strict, max_ulp, sample, seed)
        proof = prove(comparable, found, states, inputs.base.tensors, terms, budget, progress)
        offenders += proof.offenders
        share = proof.compared / proof.elements if proof.elements else 1.0
        errors = [weight.error_ulp for weight in proof.weights if weight.error_ulp is not None]
        dropped = [DroppedTensor(name, str(base), role.value) for name, role in inputs.keys.states.items()]
        report = VerifyReport(
            base=str(base),
            merged=str(merged),
            adapters=tuple(map(adapter_report, inputs.adapters, folds.rules)),
            passed=not offenders,
            strict=strict,
            max_ulp=max_ulp,
            names=chosen,
            weights=tuple(proof.weights),
            equal=tuple(proof.equal),
            cast=tuple(proof.cast),
            dropped=tuple(dict.fromkeys([*dropped, *folds.dropped])),
            offenders=tuple(offenders),
            largest_error_ulp=max(errors, default=None),
            sample=sample,
            seed=seed,
            sampled_share=share,
            chance_of_one_percent=chance_of_share(sample, proof.stretches),
            chance_of_one_element=share,
            warnings=(*inputs.warnings, *folds.warnings, *opened.base.warnings),
            seconds=time.monotonic() - started,
        )
    if check and not report.passed:
        raise VerificationError(problems_of(report))
    return report


def _check_arguments(dtype: str, strict: bool, max_ulp: float | None, sample: float) -> None:
    if dtype not in _DTYPES:
        raise UsageError(Problem("--dtype", dtype, ", ".join(_DTYPES)))
    if strict and max_ulp is not None:
        raise UsageError(Problem("--strict and --max-ulp", "both", "one of the two"))
    if max_ulp is not None and not (math.isfinite(max_ulp) and max_ulp >= 0.5):
        raise UsageError(Problem("--max-ulp", f"{max_ulp:g}", "at least 0.5, which rounding alone may take"))
    if not 0 < sample <= 1:
        raise UsageError(Problem("--sample", f"{sample:g}", "a share above 0, and 1 at most"))
