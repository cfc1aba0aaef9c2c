"""Put a trained prefix before the keys and values of a network's attention, as MindFormers' networks take one.

A network takes a prefix where its `construct` has an argument `prefix_keys_values`: for each layer a tensor of
`(2, batch, tokens, heads * width)`, keys then values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from surgery.errors import MismatchError, Problem
from surgery.methods import NetworkShape
from surgery.network.packages import Cell, PrefixTuningModel, PreTrainedModel, Ptuning2Model, nn

__all__ = ["ARGUMENT", "PrefixedCell", "add_prefix", "is_prefixed", "shape_of"]

ARGUMENT = "prefix_keys_values"

# MindFormers' networks cannot use a prefix together with these.
_EXCLUDED: Mapping[str, Callable[[Any], bool]] = {
    "use_attn_mask_compression": bool,
    "fine_grain_interleave": lambda value: value is not None and value > 1,
}


class PrefixedCell(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """A network with a prefix: hands it what its encoder makes.

    Args:
        network: The network.
        prefix_layers: The encoder; of the batch size it makes the prefixes of all layers.
    """

    def __init__(self, network: Cell, prefix_layers: Cell) -> None:
        super().__init__(auto_prefix=False)
        self.pet_model = network
        self.prefix_layers = prefix_layers

    def construct(self, input_ids: Any, *inputs: Any, **options: Any) -> Any:
        """The network's own, with the prefix."""
        prefix = self.prefix_layers(input_ids.shape[0])
        return self.pet_model(input_ids, *inputs, prefix_keys_values=prefix, **options)


class _PrefixedModel:
    """The constructor of MindFormers' networks with a prefix, without what theirs does besides.

    Theirs writes the method's configuration into that of the network, and takes the heads of the queries for those of
    the keys, which fails with grouped-query attention (1.3.2, 1.9.0).
    """

    def __init__(self, network: Any, prefix_layers: Cell) -> None:
        PreTrainedModel.__init__(self, network.config, auto_prefix=False)
        self.pet_model = network
        self._support_list = network._support_list
        if network.config.is_dynamic:
            network.set_dynamic_inputs(have_prefix_keys_values=True)
        self.prefix_layers = prefix_layers


class _WithPtuning2(_PrefixedModel, Ptuning2Model):  # type: ignore[misc]  # MindFormers has no types
    """MindFormers' `Ptuning2Model`."""


class _WithPrefixTuning(_PrefixedModel, PrefixTuningModel):  # type: ignore[misc]  # MindFormers has no types
    """MindFormers' `PrefixTuningModel`."""


_MODELS = {"ptuning2": _WithPtuning2, "prefixtuning": _WithPrefixTuning}


def add_prefix(network: Cell, pet_type: str, make_encoder: Callable[[Any], Cell]) -> Cell:
    """Put a prefix before a network.

    Args:
        network: The network; it is not changed.
        pet_type: The method.
        make_encoder: MindFormers' `get_prefix`, of something that has the `config` of a network.

    Returns:
        A network around it.

    Raises:
        MismatchError: The network takes no prefix, its configuration does not tell its shape, or excludes one.
    """
    problems = _problems_of(network)
    if problems:
        raise MismatchError(problems)
    shape = shape_of(network)
    parallel = getattr(network.config, "parallel_config", None) or SimpleNamespace(
        data_parallel=1, model_parallel=1, vocab_emb_dp=True
    )
    # MindFormers' encoder asks for heads and hidden size, and divides: it gets those of the keys.
    facts = {
        "num_layers": shape.num_layers,
        "num_heads": shape.num_heads,
        "hidden_size": shape.num_heads * shape.kv_channels,
        "parallel_config": parallel,
    }
    encoder = make_encoder(SimpleNamespace(config=SimpleNamespace(**facts)))
    kind = _MODELS[pet_type] if isinstance(network, PreTrainedModel) else PrefixedCell
    prefixed: Cell = kind(network, encoder)
    prefixed.set_train(network.training)
    return prefixed


def is_prefixed(network: Any) -> bool:
    """Whether a network is one around another, which `add_prefix` or MindFormers made."""
    return isinstance(network, (PrefixedCell, Ptuning2Model, PrefixTuningModel))


def shape_of(network: Any) -> NetworkShape:
    """What a prefix has to fit, as a network's configuration tells it."""
    config = network.config
    heads = int(config.num_heads)
    kv_heads = getattr(config, "n_kv_heads", None) or heads
    return NetworkShape(int(config.num_layers), int(kv_heads), int(config.hidden_size) // heads)


def _problems_of(network: Any) -> list[Problem]:
    name = type(network).__name__
    if ARGUMENT not in inspect.signature(type(network).construct).parameters:
        reason = f"no argument {ARGUMENT} of its construct"
        return [
            Problem(name, reason, "a network whose attention takes a prefix", "Choose a method that changes layers")
        ]
    config = getattr(network, "config", None)
    missing = [key for key in ("num_layers", "num_heads", "hidden_size") if getattr(config, key, None) is None]
    problems = [Problem(f"{name}.config", f"no {key}", "the shape of the network's attention") for key in missing]
    for key, excludes in _EXCLUDED.items():
        value = getattr(config, key, None)
        if value is not None and excludes(value):
            problems.append(Problem(f"{name}.config.{key}", repr(value), "a network that can use a prefix", "Unset it"))
    return problems
