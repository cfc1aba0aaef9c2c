"""`PetAdapter`: the base of all adapters between a network and a method, with the four class methods of the design."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from surgery.errors import Problem, UsageError
from surgery.freezing import FreezeReport
from surgery.methods import LayerKind, Method, PetConfig
from surgery.network import building, freezing, loading, registry
from surgery.network.packages import Cell
from surgery.pet_config import parse_pet_config

__all__ = ["PetAdapter"]


class PetAdapter:
    """An adapter adds a method's parameters to a network that the user brings, and hands it back.

    A new method implements `get_pet_model`, names its description, and is registered; all else is inherited. The base
    class itself stands for whatever method a configuration names.

    Attributes:
        method: The description of the method; None in the base class.
        kinds: The kinds of linear layers that it can change.
    """

    method: ClassVar[Method | None] = None
    kinds: ClassVar[frozenset[LayerKind]] = frozenset({LayerKind.DENSE})

    @classmethod
    def get_pet_model(cls, model: Cell | None = None, config: Any = None) -> Cell:
        """Add the method's parameters to a network. Nothing is frozen; `surgery.get_pet_model` does both.

        Args:
            model: The network, which is changed; None: `get_pretrained_model` builds it.
            config: What `surgery.pet_config.parse_pet_config` reads; it is not changed.

        Returns:
            The network to train: the same one, or one around it.

        Raises:
            MismatchError: The configuration does not fit the network or the method.
            CorruptInputError: The configuration is wrong in itself.
        """
        if cls.method is not None:
            raise NotImplementedError(f"{cls.__name__} has to implement get_pet_model")
        parsed = parse_pet_config(config)
        network = cls.get_pretrained_model(config) if model is None else model
        return registry.adapter_for(parsed).get_pet_model(network, parsed)

    @classmethod
    def load_ckpt(cls, model: Cell, config: Any, **options: Any) -> loading.LoadReport:
        """Load the checkpoint of a pretrained network, or a trained adapter's, strictly. See `loading.load_ckpt`.

        Args:
            model: The network.
            config: The checkpoint's path, or a configuration with `checkpoint_name_or_path` or `load_checkpoint`.
            options: As of `loading.load_ckpt`.
        """
        return loading.load_ckpt(model, _checkpoint_of(config), **options)

    @classmethod
    def get_pretrained_model(cls, config: Any) -> Cell:
        """Build the network that a configuration describes, among those that MindFormers has. Nothing is added to it.

        Args:
            config: A run's YAML (its path, or what it says) with a section `model`, or MindFormers' configuration of a
                network, such as a `LlamaConfig`.

        Raises:
            UsageError: The configuration describes no network, as that of a method alone does not.
        """
        return building.build_pretrained(config)

    @classmethod
    def freeze_pretrained_model(
        cls,
        model: Cell,
        pet_type: str | Method | None = None,
        freeze_include: Any = None,
        freeze_exclude: Any = None,
    ) -> FreezeReport:
        """Freeze what a method does not train.

        Args:
            model: The network; changed in place.
            pet_type: The method; by default the adapter's own.
            freeze_include: Globs of parameters to freeze besides.
            freeze_exclude: Globs of parameters to train besides.

        Returns:
            What was decided for each parameter, and why.
        """
        chosen = cls.method if pet_type is None else pet_type
        if chosen is None:
            raise UsageError(Problem("freeze_pretrained_model", "no pet_type", "the name of a method"))
        return freezing.freeze(model, chosen, include=freeze_include, exclude=freeze_exclude)

    @classmethod
    def start(cls, model: Cell | None, config: Any) -> tuple[Cell, PetConfig]:
        """What `get_pet_model` begins with: the network, built where there is none, and the method's configuration."""
        assert cls.method is not None, "only an adapter of a method adds something"
        parsed = parse_pet_config({} if config is None else config, pet_type=cls.method.pet_type)
        return (cls.get_pretrained_model(config) if model is None else model), parsed


def _checkpoint_of(config: Any) -> str | os.PathLike[str]:
    if isinstance(config, (str, os.PathLike)):
        return config
    for name in ("checkpoint_name_or_path", "load_checkpoint"):
        path = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if path:
            return str(path)
    raise UsageError(Problem("load_ckpt", "no checkpoint", "a path, checkpoint_name_or_path or load_checkpoint"))
