"""Which parameters of several adapters are of one layer, and how they are called in the adapter that is made of them.

The first adapter's spelling is that of the result: its family, its naming, its prefix. The others' names are brought to
it, by the same rules that find an adapter's weights in a base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ckpt_tools.combining import Layer, Part
from ckpt_tools.fingerprint import same_values
from ckpt_tools.joining.renaming import layer_under, names_like
from ckpt_tools.merging.adapters import Adapter, scale_of
from ckpt_tools.merging.refusals import holds_base, unfoldable, weighed_dora, weighed_whole
from ckpt_tools.reports import DroppedTensor
from ckpt_tools.tensors.folding import VectorTerm
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import reshape
from surgery.errors import MismatchError, Problem
from surgery.grouping import LoraPair
from surgery.naming import ParameterName, Role
from surgery.spelling import spell
from surgery.translation import to_huggingface

__all__ = ["Joined", "JoinedLayer", "join_adapters"]

_ROLES = {
    "linear": (Role.LORA_A, Role.LORA_B),
    "conv": (Role.LORA_A, Role.LORA_B),
    "embedding": (Role.EMBEDDING_A, Role.EMBEDDING_B),
    "expert": (Role.EXPERT_A, Role.EXPERT_B),
}


@dataclass(slots=True)
class JoinedLayer:
    """A layer of the result.

    Attributes:
        layer: The module, as the result names it.
        pairs: Each adapter's pair, and which adapter it is of.
        parts: What is combined.
        a: The name of A in the result.
        b: The name of B.
        biases: What B's bias is summed of.
        b_bias: Its name.
    """

    layer: str
    pairs: list[tuple[int, LoraPair]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    a: str = ""
    b: str = ""
    biases: list[VectorTerm] = field(default_factory=list)
    b_bias: str = ""

    def to_combine(self) -> Layer:
        """The layer as it is combined."""
        return Layer(self.layer, self.pairs[0][1].kind, tuple(self.parts), to_huggingface(self.layer))


@dataclass(slots=True)
class Joined:
    """Adapters put together.

    Attributes:
        layers: Weight of the base to what happens to it, in the first adapter's order.
        carried: Name in the result to what is taken over as it is, and where it is from: plain weights, magnitudes.
        carried_as: Weight of the base, as the first adapter names it, to the name in the result of what replaces it.
        rules: What was done to each adapter's names to bring them to the first one's.
        dropped: What is left out on purpose.
        warnings: What the user ought to know.
        problems: Why they cannot be put together.
    """

    layers: dict[str, JoinedLayer] = field(default_factory=dict)
    carried: dict[str, tuple[LazyTensor, str]] = field(default_factory=dict)
    carried_as: dict[str, str] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    dropped: list[DroppedTensor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def tensors(self) -> Iterator[LazyTensor]:
        """All tensors of the adapters that the result is made of."""
        for layer in self.layers.values():
            yield from (tensor for part in layer.parts for tensor in (part.a, part.b))
            yield from (bias.values for bias in layer.biases)
        yield from (tensor for tensor, _ in self.carried.values())


def join_adapters(adapters: Sequence[Adapter]) -> Joined:
    """Put adapters together, layer by layer.

    Args:
        adapters: At least one; the first decides on names.
    """
    joined = Joined()
    family = next((pair.family for pair in adapters[0].group.pairs), "plain")
    for number, adapter in enumerate(adapters):
        _refuse(joined, adapter, is_alone=len(adapters) == 1)
        rename = _renaming(joined, adapters[0], adapter)
        for pair in adapter.group.pairs:
            _add_pair(joined, number, adapter, pair, rename, family)
        for parameter in adapter.group.weights:
            _carry_weight(joined, adapter, parameter, rename, family)
    shared = [layer for layer in joined.layers.values() if len(layer.pairs) > 1]
    if len(adapters) > 1 and joined.layers and not shared:
        joined.warnings.append("the adapters have no layer in common: nothing is combined, all are put side by side")
    return joined


def _refuse(joined: Joined, adapter: Adapter, *, is_alone: bool) -> None:
    """What of an adapter cannot be combined, and what is left out."""
    group, path = adapter.group, str(adapter.path)
    joined.problems += [replace(one, where=f"{path}, {one.where}") for one in group.problems]
    if group.methods:
        first, more = group.methods[0], len(group.methods) - 1
        where = f"{path}, {first.name}{f' and {more} more' if more else ''}"
        joined.problems.append(Problem(where, unfoldable(first), "LoRA adapters", "It cannot be combined with others"))
    elif not group.pairs:
        joined.problems.append(Problem(path, "no LoRA matrices", "a LoRA adapter", "Is it the right file?"))
    reasons = (
        (group.states, "optimizer state or training scalar"),
        (group.dropped, "a copy or an aid of the training"),
    )
    for parameters, reason in reasons:
        joined.dropped += [DroppedTensor(one.name, path, reason) for one in parameters]
    magnitude = next((pair.magnitude for pair in group.pairs if pair.magnitude is not None), None)
    if magnitude is None:
        return
    if not is_alone:
        found = "DoRA, whose magnitudes rescale the sum of the base and its own update"
        joined.problems.append(
            Problem(f"{path}, {magnitude}", found, "LoRA adapters", "Merge it into a base by itself")
        )
    elif adapter.weight != 1:
        joined.problems.append(weighed_dora(f"{path}, {magnitude}", adapter.weight))


def _renaming(joined: Joined, first: Adapter, adapter: Adapter) -> Callable[[str], str]:
    """From an adapter's names of the base's weights to the first adapter's."""
    rename: Callable[[str], str]
    rename, rule = str, ""
    if adapter is not first:
        try:
            rename, rule = names_like(first.group, adapter.group)
        except MismatchError as error:
            joined.problems += [replace(one, where=str(adapter.path)) for one in error.problems]
    joined.rules.append(rule)
    return rename


def _add_pair(
    joined: Joined, number: int, adapter: Adapter, pair: LoraPair, rename: Callable[[str], str], family: str
) -> None:
    weight = rename(pair.bases[0])
    layer_name = layer_under(pair, rename)
    layer = joined.layers.setdefault(weight, JoinedLayer(layer_name))
    if layer.pairs and layer.pairs[0][1].kind != pair.kind:
        found = f"{layer.pairs[0][1].kind} in one adapter, {pair.kind} in another"
        joined.problems.append(Problem(layer_name, found, "one kind of layer", "Are they of the same model?"))
        return
    try:
        scale = scale_of(adapter, pair)
    except MismatchError as error:
        joined.problems += [problem for problem in error.problems if problem not in joined.problems]
        return
    tensors = adapter.tensors
    if not layer.pairs:
        is_own = pair.family == family and layer_name == pair.layer
        roles = zip((pair.a, pair.b), _ROLES[pair.kind], strict=True)
        names = [key if is_own else spell(role, layer_name, family) for key, role in roles]
        if None in names:
            found = f"{pair.kind} in {adapter.path}, which adapters spelled as {family} cannot have"
            remedy = "Name an adapter first whose spelling has it"
            joined.problems.append(Problem(layer_name, found, "layers that the first adapter's spelling has", remedy))
            return
        layer.a, layer.b = str(names[0]), str(names[1])
    layer.pairs.append((number, pair))
    layer.parts.append(Part(number, tensors[pair.a], tensors[pair.b], adapter.weight, scale.scaling, pair.rank))
    if pair.magnitude is not None:
        joined.carried[pair.magnitude] = tensors[pair.magnitude], f"{adapter.path}: {pair.magnitude}"
    if pair.b_bias is not None:
        _add_bias(joined, layer, adapter, pair, scale.scaling, family)


def _add_bias(
    joined: Joined, layer: JoinedLayer, adapter: Adapter, pair: LoraPair, scaling: float, family: str
) -> None:
    assert pair.b_bias is not None
    name = pair.b_bias if pair.family == family else spell(Role.LORA_B_BIAS, layer.layer, family)
    if name is None:
        found = f"a bias of B in {adapter.path}, which adapters spelled as {family} cannot have"
        joined.problems.append(Problem(layer.layer, found, "A and B alone", "Name that adapter first"))
        return
    layer.b_bias = layer.b_bias or name
    values = adapter.tensors[pair.b_bias]
    if layer.biases:  # as many elements, but maybe as a row or a column
        values = reshape(values, layer.biases[0].values.shape)
    layer.biases.append(VectorTerm(values, scaling * adapter.weight))


def _carry_weight(
    joined: Joined, adapter: Adapter, parameter: ParameterName, rename: Callable[[str], str], family: str
) -> None:
    """A tensor that takes the base's place goes with the result, if one adapter alone has it."""
    where = f"{adapter.path}, {parameter.name}"
    own = parameter.base or parameter.name
    is_adapted = any(own in pair.bases for pair in adapter.group.pairs)
    if is_adapted and parameter.family != "peft":
        joined.problems.append(holds_base(where, "Cut it out first: pet-split"))
        return
    if adapter.weight != 1 and not is_adapted:  # PEFT saves the base's own values of embeddings that it adapts
        joined.problems.append(weighed_whole(where, adapter.weight))
        return
    place = rename(own)
    is_own = parameter.family == family and place == own
    name = parameter.name if is_own or family == "plain" else str(spell(Role.WEIGHT, place, family))
    name = joined.carried_as.setdefault(place, name)  # one adapter may spell it as a training model does, and one not
    tensor = adapter.tensors[parameter.name]
    if name in joined.carried and not same_values(joined.carried[name][0], tensor):
        found = f"saved whole, with other values, in {joined.carried[name][1].partition(': ')[0]} too"
        remedy = "Combine adapters of which one at most has modules_to_save of this layer"
        if is_adapted:
            remedy = "The adapters were trained on bases with other values there: combine adapters of one"
        joined.problems.append(Problem(where, found, "in one adapter alone", remedy))
        return
    joined.carried.setdefault(name, (tensor, f"{adapter.path}: {parameter.name}"))
