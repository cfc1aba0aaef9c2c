"""`inspect_checkpoint`: what is in a checkpoint or a strategy, and what differs between two."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tools.distributed.opening import Opened
from ckpt_tools.distributed.replicas import sample_replicas
from ckpt_tools.formats import Iteration
from ckpt_tools.inspecting.adapters import find_adapters, with_spectra
from ckpt_tools.inspecting.comparing import compare_tensors, translated, unlike_names
from ckpt_tools.inspecting.contents import (
    differences_of_ranks,
    groups_of_ranks,
    scalars_of,
    tensors_of,
    totals_of,
)
from ckpt_tools.inspecting.layouts import layouts_of
from ckpt_tools.inspecting.served import inspect_served, is_adapter_folder
from ckpt_tools.inspecting.subjects import Subject, open_subject, read_strategy_of
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import Comparison, InspectReport
from ckpt_tools.tensors.sources import check_unchanged
from ckpt_tools.verifying.manifests import read_manifest
from ckpt_tools.writing.leftovers import check_settled
from ckpt_tools.writing.manifest import MANIFEST_KEY
from ckpt_tools.writing.memory import default_threads
from surgery.errors import CorruptInputError, InputChangedError, InputMissingError, Problem, UsageError

__all__ = ["inspect_checkpoint"]

PathLike = str | os.PathLike[str]


def inspect_checkpoint(
    path: PathLike,
    other: PathLike | None = None,
    *,
    src_strategy: PathLike | None = None,
    other_strategy: PathLike | None = None,
    step: str | None = None,
    other_step: str | None = None,
    replicated: Sequence[str] = (),
    filters: Sequence[str] = (),
    names: str = "keep",
    config: PathLike | None = None,
    spectra: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> InspectReport:
    """Say what is in a checkpoint or a strategy, and what differs between two checkpoints.

    Only headers are read, and the few bytes of training scalars. With `spectra` the adapters' matrices are read too,
    with `other` all tensors that both have; of a folder of adapters, as SLoRA and vLLM serve them, all matrices.

    Args:
        path: A checkpoint of any form, a folder of rank folders with or without a strategy, a strategy, or a folder of
            folders of adapters.
        other: A checkpoint of any form, to compare with.
        src_strategy: How `path` is cut, where it is folders of ranks.
        other_strategy: How `other` is cut.
        step: Which step of `path`: `9_1` of ranks' files, `120` of Checkpoint 2.0; by default the latest that all have.
        other_step: The same of `other`.
        replicated: Patterns of names that strategies lack, since every rank holds all of them.
        filters: Patterns of names: what matches one of them is looked at; by default everything.
        names: `keep`, `hf`, `mindformers`, or a JSON object of `path`'s names and those that they are compared under.
        config: Where alpha is read from; by default what lies beside `path`, as `merge` finds it.
        spectra: Compute the singular values of each adapted layer's scaling * B @ A.
        threads: Threads that compare; by default one for each core.
        progress: What is told how far it is.

    Raises:
        UsageError: Arguments contradict each other.
        InputMissingError: An input is not there.
        CorruptInputError: An input breaks its format.
        MismatchError: Files and strategies do not fit together; or names cannot be translated.
        ResourceError: An I/O call failed.
    """
    started = time.monotonic()
    _check(other, other_strategy, other_step, names, threads)
    # A strategy that cannot be read is told before minutes of headers.
    strategies = read_strategy_of(src_strategy, "--src-strategy"), read_strategy_of(other_strategy, "--other-strategy")
    selects = _selection(filters)
    if is_adapter_folder(Path(path)):
        _refuse_with_adapters(
            other=other,
            src_strategy=src_strategy,
            step=step,
            replicated=tuple(replicated) or None,
            spectra=spectra or None,
        )
        served = inspect_served(
            Path(path), None if config is None else Path(config), selects, threads or default_threads(), progress
        )
        return InspectReport(
            path=str(path),
            kind="adapters",
            filters=tuple(filters),
            adapters=served.adapters,
            similarities=served.similarities,
            warnings=served.warnings,
            seconds=time.monotonic() - started,
        )
    subject = open_subject(Path(path), strategies[0], step=step, replicated=replicated)
    report = replace(_facts(subject, selects, config, filters), strategy=_text(src_strategy))
    warnings = list(report.warnings)
    if spectra:
        opened = _whole_of(subject, "--spectra", "--src-strategy")
        pairs, odd = with_spectra(report.pairs, opened.base.tensors, progress)
        report = replace(report, pairs=pairs)
        warnings += odd if pairs else ["there is no pair of LoRA A and B: there are no spectra"]
        _check_files(opened)
    if other is not None:
        against = open_subject(
            Path(other), strategies[1], step=other_step, replicated=replicated, option="--other-strategy"
        )
        comparison, told = _compare(subject, against, selects, names, threads, progress)
        report = replace(report, comparison=replace(comparison, other_strategy=_text(other_strategy)))
        warnings += told
    if filters and not report.tensors and not report.layouts:
        warnings.append(f"no name matches {' or '.join(filters)}")
    return replace(report, warnings=tuple(dict.fromkeys(warnings)), seconds=time.monotonic() - started)


def _check(
    other: PathLike | None, other_strategy: PathLike | None, other_step: str | None, names: str, threads: int | None
) -> None:
    if threads is not None and threads < 1:
        raise UsageError(Problem("--threads", str(threads), "at least 1"))
    given = [
        option
        for option, is_given in (
            ("--other-strategy", other_strategy is not None),
            ("--other-step", other_step is not None),
            ("--names", names != "keep"),
        )
        if is_given
    ]
    if other is None and given:
        raise UsageError(Problem(", ".join(given), "no OTHER", "a checkpoint to compare with", "Name it behind PATH"))


def _refuse_with_adapters(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            option = "OTHER" if name == "other" else f"--{name.replace('_', '-')}"
            remedy = "Name one of the adapters instead of the folder, or leave it out"
            raise UsageError(Problem(option, "with a folder of adapters", "one checkpoint", remedy))


def _facts(
    subject: Subject, selects: Callable[[str], bool], config: PathLike | None, filters: Sequence[str]
) -> InspectReport:
    """What headers say, without the comparison and the spectra."""
    report = InspectReport(
        path=str(subject.path),
        kind=subject.kind,
        steps=subject.steps,
        filters=tuple(filters),
        warnings=subject.warnings,
    )
    if subject.strategy is not None:
        strategy = subject.strategy
        report = replace(
            report,
            stages=len(strategy.stages),
            stage_devices=strategy.stage_devices,
            ranks=strategy.ranks,
            layouts=layouts_of(strategy, selects),
        )
    opened = subject.opened
    if opened is None:
        return report
    base = opened.base
    tensors = tensors_of(base.tensors, opened.whole.parts, selects)
    adapters = find_adapters(base, tensors, None if config is None else Path(config), selects, sliced=subject.sliced)
    folder = () if opened.folder is None else opened.folder.ranks
    said, broken = _manifest(subject.path)
    root = opened.iteration.path if opened.iteration is not None else base.path
    return replace(
        report,
        format=base.format,
        files=tuple(_name_within(source.path, root, base.is_folder) for source in base.sources),
        file_bytes=sum(source.size for source in base.sources),
        step=opened.step,
        ranks=opened.ranks,
        sliced=subject.sliced,
        metadata={**_without_manifest(base.metadata), **said, **_counters(opened.iteration)},
        base_fingerprint=adapters.base_fingerprint,
        scalars=scalars_of(base.tensors, selects),
        tensors=tensors,
        totals=totals_of(tensors),
        families=adapters.families,
        pairs=adapters.pairs,
        rank_groups=groups_of_ranks(folder, selects),
        rank_differences=differences_of_ranks(folder, selects),
        warnings=(*report.warnings, *base.warnings, *adapters.warnings, *broken),
    )


def _without_manifest(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in metadata.items() if key != MANIFEST_KEY}


def _manifest(path: Path) -> tuple[dict[str, str], list[str]]:
    """What the manifest says, in short, wherever it lies; and a warning where it is broken."""
    try:
        manifest = read_manifest(path)
    except InputMissingError:
        return {}, []
    except CorruptInputError as error:
        return {}, [str(error)]
    digests = "without digests" if manifest.digests is None else f"digests of {len(manifest.digests)} tensors"
    warnings = []
    try:
        check_settled(path, manifest.where)
    except InputChangedError as error:
        warnings.append(str(error))
    return {"manifest": f"{manifest.command} of {', '.join(manifest.inputs)} by {manifest.tool}; {digests}"}, warnings


def _counters(iteration: Iteration | None) -> Mapping[str, str]:
    """What `common.json` says, as text beside the metadata."""
    if iteration is None:
        return {}
    return {f"common.{key}": str(value) for key, value in iteration.common.items()}


def _name_within(path: str, root: Path, is_folder: bool) -> str:
    if is_folder:
        for start in (root.absolute(), root.resolve()):
            if Path(path).is_relative_to(start):
                return str(Path(path).relative_to(start))
    return Path(path).name


def _compare(
    subject: Subject,
    against: Subject,
    selects: Callable[[str], bool],
    names: str,
    threads: int | None,
    progress: Progress,
) -> tuple[Comparison, list[str]]:
    first, other = _whole_of(subject, "PATH", "--src-strategy"), _whole_of(against, "OTHER", "--other-strategy")
    here, there = translated(first.base.tensors, other.base.tensors, names)
    warnings = list(unlike_names(here, there))
    here = {name: tensor for name, tensor in here.items() if selects(name)}
    there = {name: tensor for name, tensor in there.items() if selects(name)}
    for one in (first, other):
        warnings += sample_replicas(one.whole)
    warnings += [*against.warnings, *other.base.warnings]
    compared = compare_tensors(here, there, threads=threads or default_threads(), progress=progress)
    for one in (first, other):
        _check_files(one)
    only_here = tuple(name for name in here if name not in there)
    only_there = tuple(name for name in there if name not in here)
    return (
        Comparison(
            other=str(against.path),
            other_strategy=None,
            other_format=other.base.format,
            names=names,
            equal=not only_here and not only_there and all(tensor.equal_bits for tensor in compared),
            only_here=only_here,
            only_there=only_there,
            tensors=compared,
        ),
        warnings,
    )


def _whole_of(subject: Subject, what: str, option: str) -> Opened:
    """The whole tensors of a subject, which what the user wants is of."""
    if subject.opened is None:
        found = "a strategy, which has layouts and no tensors"
        raise UsageError(Problem(f"{what}, {subject.path}", found, "a checkpoint", "Name the weights"))
    if subject.sliced:
        found, remedy = "folders of ranks, and no strategy", f"Give the strategy that the run saved with {option}"
        raise UsageError(Problem(f"{what}, {subject.path}", found, "whole tensors", remedy))
    return subject.opened


def _check_files(opened: Opened) -> None:
    for source in opened.base.sources:
        check_unchanged(source)


def _selection(filters: Sequence[str]) -> Callable[[str], bool]:
    patterns = tuple(filters)
    return lambda name: not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _text(path: PathLike | None) -> str | None:
    return None if path is None else str(path)
