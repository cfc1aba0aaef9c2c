"""A delta on its way out: names, configuration, plans of what is written, and the report of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt_tools.distributed import Opened
from ckpt_tools.reports import DroppedTensor, SplitParameter, SplitReport
from ckpt_tools.splitting.adapter_output import (
    CONFIGS,
    AdapterLayout,
    AdapterOptions,
    files_beside,
    named_delta,
    plan_adapter,
)
from ckpt_tools.splitting.extracting import Extracted
from ckpt_tools.splitting.facts import Scales, base_fingerprint, lora_facts, pairs_of
from ckpt_tools.splitting.selection import Selected
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast
from ckpt_tools.writing.destination import free_bytes
from ckpt_tools.writing.outputs import Changes, OutputOptions, plan_output
from ckpt_tools.writing.plan import Plan
from surgery.adapter_facts import METADATA_FINGERPRINT, SECTION, surgery_section
from surgery.errors import MismatchError, Problem
from surgery.grouping import LoraPair
from surgery.methods import known_methods
from surgery.naming import Role, classify
from surgery.version import __version__

__all__ = ["Draft"]


class Draft:
    """A checkpoint whose delta was told apart, on its way to plans and a report.

    Args:
        opened: The checkpoint.
        tensors: The delta's tensors, and others.
        selected: What of the checkpoint is what.
        options: What the user wants.
        scales: Where alpha comes from.
        dtype: The type of floating-point tensors, or `keep`.
        extracted: What was extracted, where that is the delta.
    """

    def __init__(
        self,
        opened: Opened,
        tensors: Mapping[str, LazyTensor],
        selected: Selected,
        options: AdapterOptions,
        scales: Scales,
        dtype: str,
        extracted: Extracted | None = None,
    ) -> None:
        self._opened = opened
        self._selected = selected
        self._options = options
        self._scales = scales
        self._extracted = extracted
        self._pairs: tuple[LoraPair, ...] = pairs_of(selected.delta, tensors)
        self.fingerprint = (
            base_fingerprint(self._pairs, opened.base, scales) if extracted is None else extracted.fingerprint
        )
        cast = {one.name: _cast(tensors[one.name], dtype) for one in selected.delta}
        self._layout: AdapterLayout = named_delta(selected.delta, cast, options)
        self._warnings: list[str] = []
        self._config = self._configuration()

    def adapter_plan(self) -> Plan:
        """The adapter."""
        metadata = {
            "pet_surgery.version": __version__,
            "pet_surgery.source": os.fsencode(self._opened.base.path.name).decode(errors="replace"),
        }
        if self.fingerprint:
            metadata[METADATA_FINGERPRINT] = self.fingerprint
        return plan_adapter(self._layout, self._options, self._opened.base.format, self._config, metadata)

    def files_beside(self, plan: Plan) -> dict[Path, bytes]:
        """What goes with the adapter where it is one file: path to content."""
        return files_beside(plan, self._config)

    def remainder_plan(self, path: Path) -> Plan:
        """The base."""
        tensors = self._opened.base.tensors
        rest = [(one.name, tensors[one.name]) for one in self._selected.rest]
        if not rest:
            found, expected = "no weights beside the delta", "a base"
            raise MismatchError(
                Problem(f"{self._opened.base.path}", found, expected, "Leave --remainder out: it is an adapter alone")
            )
        base = replace(self._opened.base, companions=())
        return plan_output(base, rest, OutputOptions(path), Changes())

    def _configuration(self) -> dict[str, Any] | None:
        """What `adapter_config.json` says; None where nobody knows the alpha, and the format does not need it."""
        source = str(self._opened.base.path)
        section = surgery_section(self.fingerprint)
        kind = self._options.format if self._options.format in CONFIGS else self._own_kind()
        if not self._pairs:
            if self._options.format in ("peft", "slora"):
                found = f"a delta without LoRA's A and B, such as {self._selected.delta[0].name}"
                remedy = "Keep its names: --format keep"
                raise MismatchError(Problem(f"--format {self._options.format}", found, "LoRA's A and B", remedy))
            method = _method_of(self._selected)
            known = method in {one.pet_type for one in known_methods()}
            return {"pet_config": {"pet_type": method}, SECTION: section} if known else None
        if self._options.format not in ("peft", "slora") and any(
            self._scales.alpha_of(pair.layer) is None for pair in self._pairs
        ):
            self._warnings.append(
                f"{source}: no alpha is known, so no adapter_config.json is written, and a merge will ask for it: give "
                "--alpha or --config"
            )
            return None
        facts = lora_facts(self._pairs, self._layout, self._scales, self._selected.rest, source, section)
        return CONFIGS[kind](facts)

    def _skipped(self) -> list[str]:
        skipped = [] if self._extracted is None else self._extracted.skipped
        if not skipped:
            return []
        return [f"{len(skipped)} weights changed and are not in the adapter, such as {skipped[0]}"]

    def _own_kind(self) -> str:
        return "peft" if any(pair.family == "peft" for pair in self._pairs) else "mindformers"

    def report(self, plans: Sequence[Plan], peak_bytes: int) -> SplitReport:
        """What is known before anything is written."""
        selected, plan = self._selected, plans[0]
        source = str(self._opened.base.path)
        new_tensors = dict(self._layout.tensors)
        # What the strategy does not list, and nobody needs.
        unlisted = [classify(name) for name in self._opened.whole.left_out]
        return SplitReport(
            output=str(plan.output),
            source=source,
            remainder=str(plans[1].output) if len(plans) > 1 else None,
            method=_method_of(selected),
            families=tuple(sorted({pair.family for pair in self._pairs})),
            base_fingerprint=self.fingerprint,
            config=self._config,
            format=next(plan.files()).format,
            files=(*(entry.name for entry in plan.entries), *(path.name for path in self.files_beside(plan))),
            parameters=tuple(
                SplitParameter(
                    name=new,
                    source_name=old,
                    role=classify(old).role.value,
                    shape=new_tensors[new].shape,
                    dtype=new_tensors[new].dtype.name,
                )
                for old, new in self._layout.renamed.items()
            ),
            left=tuple(one.name for one in (*selected.rest, *(one for one in unlisted if one.role is Role.WEIGHT))),
            dropped=tuple(
                DroppedTensor(one.name, source, one.role.value)
                for one in (*selected.dropped, *unlisted)
                if one.role is not Role.WEIGHT
            ),
            extracted=() if self._extracted is None else tuple(self._extracted.layers),
            warnings=(*self._opened.base.warnings, *self._warnings, *self._skipped()),
            bytes_read=sum(plan.bytes_read() for plan in plans),
            bytes_written=sum(plan.bytes_written() for plan in plans),
            peak_memory_bytes=peak_bytes,
            free_disk_bytes=free_bytes(plan.output),
        )


def _cast(tensor: LazyTensor, dtype: str) -> LazyTensor:
    if dtype == "keep" or not tensor.dtype.is_float or tensor.dtype == BY_NAME[dtype]:
        return tensor
    return Cast(tensor, BY_NAME[dtype])


def _method_of(selected: Selected) -> str:
    """The method that the delta shows: MindFormers' `pet_type`; `mixed` of several."""
    words = {
        Role.PTUNING2: "ptuning2",
        Role.PREFIX: "prefixtuning",
        Role.BOTTLENECK: "adapter",
        Role.LOW_RANK_ADAPTER: "low_rank_adapter",
        Role.OTHER_METHOD: "another",
    }
    found = {words.get(one.role, "lora") for one in selected.delta if one.role is not Role.WEIGHT}
    if not found:
        is_biases = all(one.name.endswith("bias") for one in selected.delta)
        return "bitfit" if is_biases else "weights"
    return found.pop() if len(found) == 1 else "mixed"
