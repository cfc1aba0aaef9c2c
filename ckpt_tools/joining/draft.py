"""A combined adapter on its way out: names, configuration, the plan of what is written, and the report of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_tools.combining import Combination
from ckpt_tools.combining.layers import Combined
from ckpt_tools.distributed import Opened
from ckpt_tools.fingerprint import TARGETS_VERSION
from ckpt_tools.joining.matching import Joined, JoinedLayer
from ckpt_tools.merging.adapters import Adapter
from ckpt_tools.merging.draft import adapter_report
from ckpt_tools.reports import CombinedParameter, CombineReport
from ckpt_tools.splitting.adapter_output import CONFIGS, AdapterOptions, files_beside, named_delta, plan_adapter
from ckpt_tools.splitting.facts import Scales, lora_facts
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.folding import Added
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast, Constant
from ckpt_tools.writing.destination import free_bytes
from ckpt_tools.writing.manifest import printable_name
from ckpt_tools.writing.plan import Plan
from surgery.adapter_facts import METADATA_FINGERPRINT, surgery_section
from surgery.errors import MismatchError, Problem
from surgery.grouping import group_lora
from surgery.naming import classify
from surgery.version import __version__

__all__ = ["JoinDraft"]


class JoinDraft:
    """Adapters that were combined, on their way to a plan and a report.

    Args:
        adapters: What went in.
        joined: How they were put together.
        combined: Name of a layer to its A and B.
        how: The method.
        dtype: The type of A and B.
        options: What the user wants the result to be.
        opened: The adapters' files.
        casts: Whether the type is what the user asked for, so that what is taken over has it too.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        joined: Joined,
        combined: Mapping[str, Combined],
        how: Combination,
        dtype: DType,
        options: AdapterOptions,
        opened: Sequence[Opened],
        *,
        casts: bool,
    ) -> None:
        self._casts = casts
        self._adapters, self._joined, self._combined = adapters, joined, combined
        self._how, self._options, self._opened = how, options, opened
        self._tensors, self._sources = self._named(dtype)
        self.fingerprint = ""
        self._warnings: list[str] = []

    def _named(self, dtype: DType) -> tuple[dict[str, LazyTensor], dict[str, tuple[str, ...]]]:
        """The result's tensors under the first adapter's spelling, and what each was made of."""
        tensors: dict[str, LazyTensor] = {}
        sources: dict[str, tuple[str, ...]] = {}
        for layer in self._joined.layers.values():
            done = self._combined[layer.layer]
            made = {layer.a: (done.a, "a"), layer.b: (done.b, "b")}
            if layer.b_bias:
                zeros = Constant(np.zeros(layer.biases[0].values.shape, dtype.numpy), dtype)
                made[layer.b_bias] = (Added(zeros, tuple(layer.biases), dtype), "b_bias")
            for name, (tensor, slot) in made.items():
                tensors[name] = tensor
                keys = ((number, getattr(pair, slot)) for number, pair in layer.pairs)
                sources[name] = tuple(f"{self._adapters[number].path}: {key}" for number, key in keys if key)
        for name, (tensor, source) in self._joined.carried.items():
            is_kept = not self._casts or not tensor.dtype.is_float or tensor.dtype == dtype
            tensors[name], sources[name] = tensor if is_kept else Cast(tensor, dtype), (source,)
        return tensors, sources

    def check_bases(self, *, allow_other_base: bool) -> None:
        """Find out which base the result belongs to.

        Raises:
            MismatchError: Adapters of the same layers say that they were trained on different bases.
        """
        said: dict[frozenset[str], dict[str, str]] = {}
        for number, adapter in enumerate(self._adapters):
            if adapter.base_fingerprint.startswith(TARGETS_VERSION):
                keys = frozenset(weight for weight, layer in self._joined.layers.items() if _has(layer, number))
                said.setdefault(keys, {}).setdefault(adapter.base_fingerprint, str(adapter.path))
        for fingerprints in said.values():
            if len(fingerprints) > 1 and not allow_other_base:
                (first, path), (other, its_path), *_ = fingerprints.items()
                found = f"an adapter of the base {other[:20]}..., where {path} is of {first[:20]}..."
                remedy = "Their bases have other values: combine adapters of one, or accept it with --allow-other-base"
                raise MismatchError(Problem(its_path, found, "adapters of one base", remedy))
        of_all = said.get(frozenset(self._joined.layers), {})
        if len(of_all) == 1:
            self.fingerprint = next(iter(of_all))
        elif said:
            self._warnings.append(
                "no adapter has all layers of the result, so which base it belongs to is not in it any more: a merge "
                "will not notice another one"
            )
        named = {one.config.base_model_name for one in self._adapters if one.config is not None} - {"", "none"}
        if len(named) > 1:
            self._warnings.append(f"the adapters' configurations name several bases: {', '.join(sorted(named))}")

    def plan(self) -> Plan:
        """What is written."""
        names = frozenset(self._tensors)
        delta = [classify(name, names) for name in self._tensors]
        self._layout = named_delta(delta, self._tensors, self._options)
        self._config = self._configuration()
        metadata = {
            "pet_surgery.version": __version__,
            "pet_surgery.method": self._how.words,
            "pet_surgery.sources": ", ".join(printable_name(one.path) for one in self._adapters),
        }
        if self.fingerprint:
            metadata[METADATA_FINGERPRINT] = self.fingerprint
        return plan_adapter(self._layout, self._options, self._opened[0].base.format, self._config, metadata)

    def _configuration(self) -> dict[str, Any]:
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        pairs = group_lora(list(shapes), shapes).pairs
        scales = Scales(None, None, by_layer={pair.layer: float(pair.rank) for pair in pairs})
        section = surgery_section(self.fingerprint, method=self._how.words)
        facts = lora_facts(pairs, self._layout, scales, (), str(self._options.path), section)
        configs = [one.config for one in self._adapters if one.config is not None]
        named = {one.base_model_name for one in configs} - {"", "none"}
        facts = replace(
            facts,
            base_name=named.pop() if len(named) == 1 else "",
            fan_in_fan_out=any(one.fan_in_fan_out for one in configs),
        )
        own = "peft" if any(pair.family == "peft" for pair in pairs) else "mindformers"
        return CONFIGS[self._options.format if self._options.format in CONFIGS else own](facts)

    def files_beside(self, plan: Plan) -> dict[Path, bytes]:
        """What goes with the adapter where it is one file: path to content."""
        return files_beside(plan, self._config)

    def report(self, plan: Plan, peak_bytes: int) -> CombineReport:
        """What was combined and is written."""
        layers = tuple(self._combined[layer.layer].report for layer in self._joined.layers.values())
        unfinished = [layer.name for layer in layers if not layer.converged]
        warnings = [*(warning for one in self._opened for warning in one.base.warnings), *self._joined.warnings]
        if unfinished:
            found = f"{len(unfinished)} layers did not come to rest in their decomposition: {unfinished[0]}, ..."
            warnings.append(found)
        tensors = dict(self._layout.tensors)
        return CombineReport(
            output=str(plan.output),
            adapters=tuple(map(adapter_report, self._adapters, self._joined.rules)),
            method=self._how.method,
            how=self._how.words,
            layers=layers,
            parameters=tuple(
                CombinedParameter(new, self._sources[old], tensors[new].shape, tensors[new].dtype.name)
                for old, new in self._layout.renamed.items()
            ),
            dropped=tuple(self._joined.dropped),
            base_fingerprint=self.fingerprint,
            config=self._config,
            format=next(plan.files()).format,
            files=(*(entry.name for entry in plan.entries), *(path.name for path in self.files_beside(plan))),
            warnings=(*warnings, *self._warnings),
            bytes_read=sum(
                part.a.nbytes + part.b.nbytes for layer in self._joined.layers.values() for part in layer.parts
            ),
            bytes_written=plan.bytes_written(),
            peak_memory_bytes=peak_bytes,
            free_disk_bytes=free_bytes(plan.output),
        )


def _has(layer: JoinedLayer, number: int) -> bool:
    return any(one == number for one, _ in layer.pairs)
