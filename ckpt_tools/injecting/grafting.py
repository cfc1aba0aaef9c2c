"""Trained adapters in the place of fresh parameters: found by what their names say, under this network's spelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ckpt_tools.fingerprint import content_digest
from ckpt_tools.formats import Checkpoint
from ckpt_tools.merging.adapters import ScaleOption, carried_fingerprint, find_configuration
from ckpt_tools.reports import DroppedTensor
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Cast
from surgery.errors import MismatchError, NonFiniteError, PetSurgeryError, Problem
from surgery.grouping import LoraPair, group_lora
from surgery.methods import LoraPetConfig, Method, NewParameter, PetConfig, method_for
from surgery.naming import ParameterName, Role, classify
from surgery.near import near_names
from surgery.resolution import resolve_names
from surgery.scaling import lora_scaling

__all__ = ["Graft", "digest_grafted", "graft_adapter"]

_DROPPED = (Role.OPTIMIZER, Role.SCALAR, Role.TRAINING_AID, Role.SUPERSEDED)
_MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class Graft:
    """What a trained adapter gives to a network.

    Attributes:
        added: Name of a new parameter to its trained values.
        replaced: The same of weights of the base that the method trains, as BitFit does.
        keys: Name of either to its key in the adapter.
        dropped: What of the adapter is of its training only.
        rule: What was done to its names to find the base's; empty where they are spelled alike.
        base_fingerprint: That of the weights that its layers were trained on; empty where it carries none.
        warnings: What the user ought to know.
    """

    added: Mapping[str, LazyTensor] = field(default_factory=dict)
    replaced: Mapping[str, LazyTensor] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[DroppedTensor, ...] = ()
    rule: str = ""
    base_fingerprint: str = ""
    warnings: tuple[str, ...] = ()


def graft_adapter(
    adapter: Checkpoint,
    config: PetConfig,
    parameters: Mapping[str, NewParameter],
    weights: Mapping[str, LazyTensor],
    may_leave_out: Callable[[str], bool],
) -> Graft:
    """Find the values of new parameters in a trained adapter.

    Args:
        adapter: The adapter.
        config: What the network is tuned with.
        parameters: The new parameters, by name.
        weights: The base's weights.
        may_leave_out: Whether a key of the adapter may have no place in the network.

    Raises:
        MismatchError: A key has no place or a parameter no key, a shape is another, or the adapter was trained with
            another scale; all problems at once.
    """
    work = _Grafting(adapter, method_for(config), parameters, weights)
    work.take_all(may_leave_out)
    work.find_missing()
    if isinstance(config, LoraPetConfig):
        work.look_into_configuration(config)
    return work.result()


def digest_grafted(adapter: Checkpoint, graft: Graft, *, allow_nonfinite: bool) -> str:
    """The digest of what an adapter gives to a network, all of which is read.

    Raises:
        NonFiniteError: It holds NaN or Inf, and `allow_nonfinite` is not set.
    """
    digest, nonfinite = content_digest({key: adapter.tensors[key] for key in graft.keys.values()})
    if nonfinite and not allow_nonfinite:
        remedy = "The training diverged: take an earlier checkpoint, or accept it with --allow-nonfinite"
        raise NonFiniteError(
            Problem(f"{adapter.path}, {key}", "NaN or Inf", "finite values", remedy) for key in nonfinite
        )
    return digest


@dataclass(slots=True)
class _Grafting:
    adapter: Checkpoint
    method: Method
    parameters: Mapping[str, NewParameter]
    weights: Mapping[str, LazyTensor]
    found: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    dropped: list[DroppedTensor] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    rule: str = ""
    base_fingerprint: str = ""

    def take_all(self, may_leave_out: Callable[[str], bool]) -> None:
        """Find the place of each key."""
        tensors = self.adapter.tensors
        names = [classify(key, frozenset(tensors)) for key in tensors]
        resolution = resolve_names({one.name: weights for one in names if (weights := _weights_of(one))}, self.weights)
        self.rule = resolution.rule
        by_role = {
            (parameter.role, parameter.layer, _tail(parameter)): parameter.name
            for parameter in map(classify, self.parameters)
        }
        for one in names:
            if one.role in _DROPPED:
                self.dropped.append(DroppedTensor(one.name, str(self.adapter.path), one.role.value))
                continue
            weight = resolution.found.get(one.name)
            if one.role is Role.WEIGHT and weight is not None and self.method.trains(weight):
                self._put(self.replaced, weight, one.name, self.weights[weight].shape)
                continue
            layer = one.layer if weight is None else weight.rpartition(".")[0]
            name = by_role.get((one.role, layer, _tail(one)))
            if name is not None:
                self._put(self.found, name, one.name, self.parameters[name].shape)
            elif may_leave_out(one.name):
                self.dropped.append(DroppedTensor(one.name, str(self.adapter.path), "unused, as allowed"))
            else:
                self._unused(one)

    def _put(self, places: dict[str, str], name: str, key: str, shape: tuple[int, ...]) -> None:
        where = f"{self.adapter.path}: {key}"
        if name in places:
            self.problems.append(Problem(where, f"a second tensor for {name}, beside {places[name]}", "one"))
            return
        places[name] = key
        held = self.adapter.tensors[key].shape
        if held != shape:
            remedy = "Give the configuration that the adapter was trained with"
            self.problems.append(Problem(where, f"shape {list(held)}", f"{list(shape)}, as {name} has", remedy))

    def _unused(self, one: ParameterName) -> None:
        remedy = "Accept it with --allow-unused PATTERN"
        near = near_names(one.name, self.parameters) if len(self.problems) < _MAX_PROBLEMS else []
        likely = f"Is it {near[0]}? " if near else ""
        what = "a weight" if one.role is Role.WEIGHT else one.role.value
        found = f"{what} that has no place in the network"
        self.problems.append(Problem(f"{self.adapter.path}: {one.name}", found, remedy=f"{likely}{remedy}"))

    def find_missing(self) -> None:
        """Report the new parameters that the adapter does not have; what training leaves as it is may be missing."""
        for name, parameter in self.parameters.items():
            if name not in self.found and parameter.is_trained:
                found, expected = f"nothing for {name}", f"a tensor of {list(parameter.shape)}"
                remedy = "Give the configuration that the adapter was trained with"
                self.problems.append(Problem(str(self.adapter.path), found, expected, remedy))
        if not self.parameters and not self.replaced:
            found = f"nothing that {self.method.title} trains"
            self.problems.append(Problem(str(self.adapter.path), found, "an adapter of this method"))

    def look_into_configuration(self, config: LoraPetConfig) -> None:
        """Hold the network's one scale to what the adapter's own configuration, if it has one, says of each layer."""
        try:
            own, _ = find_configuration(self.adapter, ScaleOption())
        except PetSurgeryError as error:
            remedy = "Move it away if it is no adapter's"
            self.problems += [replace(problem, remedy=problem.remedy or remedy) for problem in error.problems]
            return
        pairs = self._pairs()
        self.base_fingerprint = carried_fingerprint(self.adapter, own, pairs)
        if own is None:
            return
        scales = {
            pair.layer: lora_scaling(alpha, pair.rank, use_rslora=own.use_rslora)
            for pair in pairs
            if (alpha := own.alpha_of(pair.layer)) is not None
        }
        other = next((layer for layer, scale in scales.items() if scale != config.scaling), None)
        if other is None:
            return
        wanted = f"{config.scaling:g}, as the network would have it (lora_alpha {config.lora_alpha:g})"
        found = f"a scale of {scales[other]:g}"
        remedy = f"Set lora_alpha to {scales[other] * config.lora_rank:g}"
        if len(set(scales.values())) > 1:
            found += f" for {other}"
            remedy = "A network has one scale for all layers: fold the adapter in with pet-merge"
        self.problems.append(
            Problem(own.source, found, wanted, f"{remedy}, or move the file away if it is of another adapter")
        )

    def _pairs(self) -> list[LoraPair]:
        """LoRA's A and B, of those that have a place in the network."""
        placed = set(self.found.values())
        tensors = self.adapter.tensors
        group = group_lora(tensors, {name: tensor.shape for name, tensor in tensors.items()})
        return [pair for pair in group.pairs if pair.a in placed]

    def result(self) -> Graft:
        if self.problems:
            more = len(self.problems) - _MAX_PROBLEMS
            rest = [Problem(str(self.adapter.path), f"{more} more problems of these kinds")] if more > 0 else []
            raise MismatchError([*self.problems[:_MAX_PROBLEMS], *rest])
        narrowed: list[str] = []
        added = {
            name: self._value(name, key, self.parameters[name].dtype, narrowed) for name, key in self.found.items()
        }
        replaced = {
            name: self._value(name, key, self.weights[name].dtype.name, narrowed) for name, key in self.replaced.items()
        }
        warnings: tuple[str, ...] = ()
        if narrowed:
            what = f"{len(narrowed)} tensors are rounded to the network's type: {narrowed[0]}, ..."
            warnings = (f"{self.adapter.path}: {what}",)
        return Graft(
            added,
            replaced,
            {**self.found, **self.replaced},
            tuple(self.dropped),
            self.rule,
            self.base_fingerprint,
            warnings,
        )

    def _value(self, name: str, key: str, dtype: str, narrowed: list[str]) -> LazyTensor:
        tensor, target = self.adapter.tensors[key], BY_NAME[dtype]
        if tensor.dtype == target:
            return tensor
        if not (tensor.dtype.is_float and target.is_float):
            found, expected = f"elements of {tensor.dtype}", f"{target}, as {name} has"
            raise MismatchError(Problem(f"{self.adapter.path}: {key}", found, expected))
        if (tensor.dtype.name, target.name) not in _EXACT:
            narrowed.append(key)
        return Cast(tensor, target)


_EXACT = {("fp16", "fp32"), ("bf16", "fp32"), ("fp16", "fp64"), ("bf16", "fp64"), ("fp32", "fp64")}


def _weights_of(one: ParameterName) -> tuple[str, ...]:
    """The weight of the base that a key belongs to, by which its layer is found under the base's spelling."""
    if one.role in _DROPPED:
        return ()
    if one.role is Role.WEIGHT:
        return (one.base or one.name,)
    return (f"{one.layer}.weight",) if one.layer else ()


def _tail(one: ParameterName) -> str:
    """What of a name stands behind its layer; nothing for LoRA, which each family calls otherwise."""
    if one.role in (Role.LORA_A, Role.LORA_B):
        return ""
    return one.name[len(one.layer) + 1 :] if one.layer else one.name
