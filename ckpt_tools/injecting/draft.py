"""The changed network on its way to a plan: the base's weights and the new parameters, in the network's order."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from ckpt_tools.distributed import Opened
from ckpt_tools.fingerprint import fingerprint, fingerprint_of_lora
from ckpt_tools.injecting.adding import added_parameters, initialised, ordered
from ckpt_tools.injecting.grafting import Graft, graft_adapter
from ckpt_tools.injecting.inputs import Inputs
from ckpt_tools.injecting.layouts import AddedTo
from ckpt_tools.injecting.selecting import Selection, select_layers
from ckpt_tools.renaming import rename_tensors
from ckpt_tools.reports import DroppedTensor
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast
from ckpt_tools.writing.outputs import Changes
from surgery.adapter_facts import METADATA_FINGERPRINT
from surgery.errors import MismatchError, Problem, UsageError
from surgery.freezing import FreezeReport, FreezeRules, ParameterFacts, decide_freezing
from surgery.methods import NewParameter, method_for
from surgery.naming import Role, classify
from surgery.tuning import Tuning
from surgery.version import __version__

__all__ = ["Draft"]


@dataclass(frozen=True, slots=True)
class Draft:
    """The changed network: base weights and new parameters, and what is to be said of them."""

    weights: Mapping[str, LazyTensor]
    old_names: Mapping[str, str]
    selection: Selection
    added: tuple[AddedTo, ...]
    graft: Graft
    network: Mapping[str, LazyTensor]
    written: Mapping[str, LazyTensor]
    freezing: FreezeReport
    base_fingerprint: str
    adapter_fingerprint: str
    dropped: tuple[DroppedTensor, ...]
    warnings: tuple[str, ...]
    tuning: Tuning
    seed: int

    @classmethod
    def of(
        cls,
        tuning: Tuning,
        inputs: Inputs,
        names: str,
        dtype: str,
        seed: int,
        may_leave_out: Callable[[str], bool],
        *,
        only_delta: bool,
    ) -> Draft:
        original, dropped = _weights_of(inputs.base)
        renamed, new_names = rename_tensors(list(original.items()), names)
        weights = dict(renamed)
        selection = select_layers(tuning, weights)
        added = tuple(_cast_new(one, dtype) for one in added_parameters(tuning, selection, weights))
        parameters = {one.parameter.name: one.parameter for one in added}
        graft = Graft()
        if inputs.adapter is not None:
            graft = graft_adapter(inputs.adapter.base, tuning.config, parameters, weights, may_leave_out)
        # What training leaves as it is may be missing in an adapter: it is fresh.
        values = {name: graft.added.get(name) or initialised(one, seed) for name, one in parameters.items()}
        current = {name: _cast(graft.replaced.get(name, tensor), dtype) for name, tensor in weights.items()}
        network = ordered(current, values, added, selection)
        written = {name: one for name, one in network.items() if name not in weights or name in graft.replaced}
        of_base = fingerprint_of_lora(weights | values)
        if only_delta and not written:
            found = f"{method_for(tuning.config).title}, which adds nothing"
            raise UsageError(Problem("--only-delta", found, "a method that adds parameters", "Leave it out"))
        return cls(
            weights,
            {new: old for old, new in new_names.items()},
            selection,
            added,
            graft,
            network,
            written if only_delta else network,
            _freezing(tuning, network, parameters),
            fingerprint(original),
            # The delta alone belongs to the base as it is, with the base to what is written of it.
            of_base if only_delta else fingerprint_of_lora(current | values),
            (*dropped, *graft.dropped),
            (
                *inputs.warnings,
                *tuning.config.warnings,
                *graft.warnings,
                *_other_base(inputs, graft, of_base),
            ),
            tuning,
            seed,
        )

    def renamed(self, old_names: Collection[str]) -> frozenset[str]:
        """The base's names of some weights as the output has them."""
        return frozenset(name for name in self.weights if self.old_names.get(name, name) in old_names)

    def changes(self, inputs: Inputs, *, only_delta: bool) -> Changes:
        """What the files of the output say besides their tensors."""
        metadata = {
            "pet_surgery.version": __version__,
            "pet_surgery.base": os.fsencode(inputs.base.base.path.name).decode("utf-8", "backslashreplace"),
            METADATA_FINGERPRINT: self.adapter_fingerprint if only_delta else self.base_fingerprint,
            "pet_surgery.pet_type": self.tuning.config.pet_type,
            "pet_surgery.seed": str(self.seed),
        }
        # A new parameter goes into the shard of its layer.
        places = {
            one.parameter.name: self.old_names.get(weight, weight)
            for one in self.added
            if one.layer is not None
            for weight in self.selection.own[one.layer.name][:1]
        }
        return Changes({key: text for key, text in metadata.items() if text}, renamed={**self.old_names, **places})


def _weights_of(opened: Opened) -> tuple[dict[str, LazyTensor], list[DroppedTensor]]:
    """The weights of a base, and what of it is of its training only.

    Raises:
        MismatchError: It has an adapter already.
    """
    tensors = opened.whole.tensors
    weights, dropped, adapter = {}, [], []
    for name, tensor in tensors.items():
        role = classify(name, tensors).role
        if role is Role.WEIGHT:
            weights[name] = tensor
        elif role in (Role.OPTIMIZER, Role.SCALAR):
            dropped.append(DroppedTensor(name, str(opened.base.path), role.value))
        else:
            adapter.append(name)
    if adapter:
        found = f"{len(adapter)} parameters of an adapter in the base"
        remedy = "Fold it in first: pet-merge BASE"
        raise MismatchError(Problem(f"{opened.base.path}, {adapter[0]}", found, "a base without one", remedy))
    return weights, dropped


def _other_base(inputs: Inputs, graft: Graft, actual: str) -> Iterator[str]:
    """A warning where the adapter was trained on other weights than those that it is put to."""
    if inputs.adapter is not None and graft.base_fingerprint not in ("", actual):
        yield (
            f"{inputs.adapter.base.path}: an adapter of the base {graft.base_fingerprint[:20]}..., where this one is "
            f"{actual[:20]}...: its weights have other values than those that the adapter was trained on"
        )


def _cast_new(one: AddedTo, dtype: str) -> AddedTo:
    is_float = BY_NAME[one.parameter.dtype].is_float
    return replace(one, parameter=replace(one.parameter, dtype=dtype)) if is_float and dtype != "keep" else one


def _cast(tensor: LazyTensor, dtype: str) -> LazyTensor:
    if dtype == "keep" or not tensor.dtype.is_float or tensor.dtype.name == dtype:
        return tensor
    return Cast(tensor, BY_NAME[dtype])


def _freezing(
    tuning: Tuning, network: Mapping[str, LazyTensor], parameters: Mapping[str, NewParameter]
) -> FreezeReport:
    facts = [
        ParameterFacts(
            name, name not in parameters or parameters[name].is_trained, one.dtype.name, one.size, one.nbytes
        )
        for name, one in network.items()
    ]
    rules = FreezeRules(tuning.config.freeze_include or (), tuning.config.freeze_exclude or ())
    return decide_freezing(facts, rules, method_for(tuning.config))
