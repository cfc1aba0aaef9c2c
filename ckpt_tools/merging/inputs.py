"""The inputs of a merge, opened, told apart and matched: what `merge` writes of them and `verify` proves."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tools.distributed import Opened
from ckpt_tools.formats import Checkpoint, check_crc
from ckpt_tools.merging.accounting import BaseKeys, huggingface_config, quantisation_problem, sort_keys
from ckpt_tools.merging.adapters import Adapter, ScaleOption, load_adapter
from ckpt_tools.merging.belonging import other_bases
from ckpt_tools.merging.fold_plan import FoldPlan
from ckpt_tools.merging.folds import plan_folds
from ckpt_tools.merging.strategies import MergeStrategies, for_each
from ckpt_tools.progress import Progress
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError, Problem, UsageError

__all__ = ["MergeInputs", "check_crcs", "checked_folds", "open_inputs", "scale_options"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class MergeInputs:
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
        """The base's own weights."""
        return {name: self.base.tensors[name] for name in self.keys.weights}


def scale_options(
    count: int,
    alpha: float | Sequence[float] | None,
    scaling: float | Sequence[float] | None,
    config: PathLike | Sequence[PathLike] | None,
    weight: float | Sequence[float] | None = None,
) -> list[ScaleOption]:
    """What the user says about the scale of each adapter.

    Args:
        count: How many adapters there are.
        alpha: LoRA's alpha, one for all or one for each, as all that follows.
        scaling: The factor in front of B @ A itself.
        config: A configuration file.
        weight: What the whole adapter is multiplied with; 1 where nothing is said.

    Raises:
        UsageError: There are neither one nor as many values as adapters, or options contradict each other.
        MismatchError: A number is 0 or not finite.
    """
    alphas, scalings, configs, weights = (
        for_each(count, "--alpha", alpha),
        for_each(count, "--scaling", scaling),
        for_each(count, "--config", config),
        for_each(count, "--weight", weight),
    )
    if any(alphas) and any(scalings):
        raise UsageError(Problem("--alpha and --scaling", "both", "one of the two"))
    for option, values in (("--alpha", alphas), ("--scaling", scalings), ("--weight", weights)):
        for value in values:
            if value is not None and (value == 0 or not math.isfinite(value)):
                raise MismatchError(Problem(option, f"{value:g}", "a finite number other than 0"))
    return [
        ScaleOption(
            None if a is None else float(a),  # numpy's numbers do not go into JSON
            None if s is None else float(s),
            None if c is None else Path(c),
            1.0 if w is None else float(w),
        )
        for a, s, c, w in zip(alphas, scalings, configs, weights, strict=True)
    ]


def open_inputs(
    base_path: Path,
    adapter_paths: Sequence[Path],
    strategies: MergeStrategies,
    step: str | None,
    options: Sequence[ScaleOption],
    progress: Progress,
    *,
    allow_nonfinite: bool,
    with_crc: bool,
) -> MergeInputs:
    """Open a base and its adapters.

    Args:
        base_path: The base; without adapters it holds them.
        adapter_paths: The adapters.
        strategies: How they are cut.
        step: Which step of the training; None for the latest.
        options: What the user says about each adapter's scale.
        progress: Told how far it is.
        allow_nonfinite: Accept NaN and Inf in adapters.
        with_crc: Check the CRC-32 of files that have one.

    Raises:
        PetSurgeryError: As of `MergeStrategies.open`, `check_crc` and `load_adapter`.
    """
    opened, others = strategies.open(base_path, adapter_paths, step, progress)
    base, files = opened.base, [other.base for other in others]
    if with_crc:
        check_crcs((base, *files), progress)
    keys = sort_keys(base)
    is_combined = not files
    adapters = tuple(
        load_adapter(file, option, is_combined=is_combined, allow_nonfinite=allow_nonfinite)
        for file, option in zip(files or [base], options, strict=True)
    )
    warnings = tuple(warning for checkpoint in (base, *files) for warning in checkpoint.warnings)
    return MergeInputs(base, keys, huggingface_config(base), adapters, is_combined, opened, warnings)


def check_crcs(checkpoints: Iterable[Checkpoint], progress: Progress) -> None:
    """Read all files that have a CRC-32, and compare; what is raised is as of `check_crc`."""
    for checkpoint in checkpoints:
        for file, expected in checkpoint.crc.items():
            check_crc(file, expected, progress)


def checked_folds(inputs: MergeInputs, allow_unused: Sequence[str], *, allow_other_base: bool) -> FoldPlan:
    """What happens to each weight of the base.

    Args:
        inputs: The base and the adapters.
        allow_unused: Patterns of adapter keys that may have no home in the base.
        allow_other_base: Accept a base that is not the one whose fingerprint an adapter has.

    Raises:
        MismatchError: They do not fit together; all problems at once.
    """
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
    return folds


def _base_problems(inputs: MergeInputs) -> list[Problem]:
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
