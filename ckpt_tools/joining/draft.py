"""A combined adapter on its way out: names, configuration, the plan of what is written, and the report of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_tools.combining import Combination
from ckpt_tools.distributed import Opened
from ckpt_tools.joining.matching import Joined
from ckpt_tools.merging.adapters import Adapter
from ckpt_tools.merging.draft import adapter_report
from ckpt_tools.reports import CombinedLayer, CombinedParameter, CombineReport
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
from surgery.grouping import group_lora
from surgery.naming import classify
from surgery.version import __version__

__all__ = ["JoinDraft"]


class JoinDraft:
    """Adapters that are combined, on their way to a plan and a report.

    Args:
        adapters: What goes in.
        joined: How they are put together.
        matrices: Name of a layer to its A and B, combined; or others of these kinds, where only names and places count.
        how: The method.
        dtype: The type of A and B.
        options: What the user wants the result to be.
        opened: The adapters' files.
        fingerprint: That of the base which the result belongs to; empty where that is not known.
        casts: Whether the type is what the user asked for, so that what is taken over has it too.

    Raises:
        MismatchError: The result cannot have the names that the user wants.
        PetSurgeryError: A file of names is missing or corrupt.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        joined: Joined,
        matrices: Mapping[str, tuple[LazyTensor, LazyTensor]],
        how: Combination,
        dtype: DType,
        options: AdapterOptions,
        opened: Sequence[Opened],
        fingerprint: str,
        *,
        casts: bool,
    ) -> None:
        self._adapters, self._joined = adapters, joined
        self._how, self._options, self._opened = how, options, opened
        self._fingerprint = fingerprint
        self._tensors, self._sources = self._named(matrices, dtype, casts=casts)
        names = frozenset(self._tensors)
        delta = [classify(name, names) for name in self._tensors]
        self._layout = named_delta(delta, self._tensors, options)
        self._config = self._configuration()

    def _named(
        self, matrices: Mapping[str, tuple[LazyTensor, LazyTensor]], dtype: DType, *, casts: bool
    ) -> tuple[dict[str, LazyTensor], dict[str, tuple[str, ...]]]:
        """The result's tensors under the first adapter's spelling, and what each was made of."""
        tensors: dict[str, LazyTensor] = {}
        sources: dict[str, tuple[str, ...]] = {}
        for layer in self._joined.layers.values():
            a, b = matrices[layer.layer]
            made = {layer.a: (a, "a"), layer.b: (b, "b")}
            if layer.b_bias:
                zeros = Constant(np.zeros(layer.biases[0].values.shape, dtype.numpy), dtype)
                made[layer.b_bias] = (Added(zeros, tuple(layer.biases), dtype), "b_bias")
            for name, (tensor, slot) in made.items():
                tensors[name] = tensor
                keys = ((number, getattr(pair, slot)) for number, pair in layer.pairs)
                sources[name] = tuple(f"{self._adapters[number].path}: {key}" for number, key in keys if key)
        for name, (tensor, source) in self._joined.carried.items():
            is_kept = not casts or not tensor.dtype.is_float or tensor.dtype == dtype
            tensors[name], sources[name] = tensor if is_kept else Cast(tensor, dtype), (source,)
        return tensors, sources

    def plan(self) -> Plan:
        """What is written.

        Raises:
            UsageError: Options contradict each other.
            MismatchError: A tensor is of a type that the format cannot hold.
        """
        metadata = {
            "pet_surgery.version": __version__,
            "pet_surgery.method": self._how.words,
            "pet_surgery.sources": ", ".join(printable_name(one.path) for one in self._adapters),
        }
        if self._fingerprint:
            metadata[METADATA_FINGERPRINT] = self._fingerprint
        return plan_adapter(self._layout, self._options, self._opened[0].base.format, self._config, metadata)

    def _configuration(self) -> dict[str, Any]:
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        pairs = group_lora(list(shapes), shapes).pairs
        scales = Scales(None, None, by_layer={pair.layer: float(pair.rank) for pair in pairs})
        section = surgery_section(self._fingerprint, method=self._how.words)
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

    def report(
        self, plan: Plan, layers: Sequence[CombinedLayer], warnings: Sequence[str], peak_bytes: int
    ) -> CombineReport:
        """What was combined and is written.

        Args:
            plan: What is written.
            layers: What was done to each layer.
            warnings: What else the user ought to know.
            peak_bytes: The anonymous memory of all of it, at most.
        """
        unfinished = [layer.name for layer in layers if not layer.converged]
        said = [*(warning for one in self._opened for warning in one.base.warnings), *self._joined.warnings]
        if unfinished:
            said.append(f"{len(unfinished)} layers did not come to rest in their decomposition: {unfinished[0]}, ...")
        tensors = dict(self._layout.tensors)
        return CombineReport(
            output=str(plan.output),
            adapters=tuple(map(adapter_report, self._adapters, self._joined.rules)),
            method=self._how.method,
            how=self._how.words,
            layers=tuple(layers),
            parameters=tuple(
                CombinedParameter(new, self._sources[old], tensors[new].shape, tensors[new].dtype.name)
                for old, new in self._layout.renamed.items()
            ),
            dropped=tuple(self._joined.dropped),
            base_fingerprint=self._fingerprint,
            config=self._config,
            format=next(plan.files()).format,
            files=(*(entry.name for entry in plan.entries), *(path.name for path in self.files_beside(plan))),
            warnings=(*said, *warnings),
            bytes_read=sum(tensor.nbytes for tensor in self._joined.tensors()),
            bytes_written=plan.bytes_written(),
            peak_memory_bytes=peak_bytes,
            free_disk_bytes=free_bytes(plan.output),
        )
