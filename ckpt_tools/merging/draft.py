"""The output of a merge on its way from folds to a plan and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ckpt_tools.combining import Combination
from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.layout import Strategy
from ckpt_tools.merging.adapters import Adapter, scale_origin
from ckpt_tools.merging.fold_plan import FoldPlan
from ckpt_tools.merging.inputs import MergeInputs
from ckpt_tools.merging.strategies import plan_merged
from ckpt_tools.merging.undoing import draft_patch
from ckpt_tools.patching import PatchDraft
from ckpt_tools.renaming import rename_tensors
from ckpt_tools.reports import AdapterReport, DroppedTensor, FoldedWeight, MergeReport
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast, Checked
from ckpt_tools.writing.destination import free_bytes
from ckpt_tools.writing.manifest import ManifestInput, printable_name
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.outputs import Changes, OutputOptions
from ckpt_tools.writing.plan import Plan, with_manifest
from surgery.ties import untied_settings
from surgery.version import __version__

__all__ = ["MergeDraft", "adapter_report"]


class MergeDraft:
    """The output of a merge on its way from folds to a plan and a report.

    Args:
        inputs: The base and the adapters.
        folds: What happens to each weight.
        how: How several adapters on one weight are combined.
        dtype: The type of all floating-point tensors; None for the base's.
        base_fingerprint: That of the base's weights.
        check_finite: Whether what is copied is looked at.
    """

    def __init__(
        self,
        inputs: MergeInputs,
        folds: FoldPlan,
        how: Combination,
        dtype: DType | None,
        base_fingerprint: str,
        *,
        check_finite: bool,
    ) -> None:
        self._how = how
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

    def plan(
        self, options: OutputOptions, names: str, target: Strategy | None, prefix: str, *, digest: bool
    ) -> tuple[Plan, dict[str, str]]:
        """Lay the output out.

        Args:
            options: What the user wants the output to be.
            names: As of `rename_tensors`.
            target: How the output is cut; None for a whole one.
            prefix: What the names of the ranks' files begin with.
            digest: Whether the manifest has the tensors' digests.

        Returns:
            The plan; the base's name to the output's, of those that changed.

        Raises:
            PetSurgeryError: As of `rename_tensors` and `plan_merged`.
        """
        tensors, renamed = rename_tensors(self.tensors(), names)
        plan = plan_merged(self._inputs.opened, tensors, target, options, prefix, self.changes(renamed))
        return with_manifest(plan, "merge", self._manifest_inputs(), digest=digest), renamed

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
                "file": printable_name(adapter.path),
                "digest": adapter.digest,
                "scaling": sorted(self._scalings(adapter)),
                **({} if adapter.weight == 1 else {"weight": adapter.weight}),
            }
            for adapter in self._inputs.adapters
        ]
        metadata = {
            "pet_surgery.version": __version__,
            "pet_surgery.base": printable_name(self._inputs.base.path),
            "pet_surgery.base_fingerprint": self._fingerprint,
            "pet_surgery.adapters": json.dumps(adapters),
        }
        if not self._how.is_sum:
            metadata["pet_surgery.method"] = self._how.words
        return Changes(metadata, config, {new: old for old, new in renamed.items()})

    def _manifest_inputs(self) -> list[ManifestInput]:
        """What the manifest says of the inputs."""
        base = ManifestInput("base", printable_name(self._inputs.base.path), self._fingerprint)
        adapters = [
            ManifestInput(
                "adapter",
                printable_name(adapter.path),
                adapter.digest,
                tuple(sorted(self._scalings(adapter))),
                adapter.weight,
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
                fold, tied = folds.folds[name], folds.untied.get(name, name)
                weight = FoldedWeight(new_name, tied, tensor.shape, tensor.dtype.name, tuple(fold.uses))
                weights.append(replace(weight, combination=fold.combination))
            else:
                (cast if isinstance(tensor, Cast) else copied).append(new_name)
        states = [DroppedTensor(name, base, role.value) for name, role in inputs.keys.states.items()]
        # A combined checkpoint's states are its adapter's too.
        dropped = dict.fromkeys([*states, *(entry for entry in folds.dropped if not inputs.is_combined)])
        adapters = tuple(map(adapter_report, inputs.adapters, folds.rules))
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
            free_disk_bytes=free_bytes(plan.output),
            method=self._how.method,
            how=self._how.words,
        )


def adapter_report(adapter: Adapter, rule: str) -> AdapterReport:
    """What a report says of an adapter.

    Args:
        adapter: The adapter.
        rule: What was done to its names to find the base's.
    """
    origin = scale_origin(adapter)
    return AdapterReport(str(adapter.path), adapter.digest, origin, adapter.families, rule, adapter.weight)
