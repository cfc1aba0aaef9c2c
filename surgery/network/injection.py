"""The front door: add a method to a network, freeze the rest, and report what was done."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

from surgery.cell_rules import SkippedCell
from surgery.freezing import FreezeReport, ParameterFacts
from surgery.methods import LayerPetConfig, PetConfig, method_for
from surgery.network.cells import slots_of
from surgery.network.freezing import facts_of
from surgery.network.layers import select_layers
from surgery.network.packages import Cell
from surgery.network.registry import adapter_for
from surgery.pet_config import parse_pet_config

__all__ = ["Injection", "InjectionReport", "ReplacedCell", "get_pet_model", "inject"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplacedCell:
    """A cell that another took the place of.

    Attributes:
        path: Where it hung in the network.
        before: The class of what hung there.
        after: The class of what hangs there.
    """

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class InjectionReport:
    """What adding a method did to a network.

    Attributes:
        pet_type: The method.
        config: Its configuration.
        replaced: The cells that were replaced.
        added: The parameters that were added.
        skipped: Cells that the rule matches and that were left, with the reason.
        freezing: What is trained and what is not, with the reasons.
    """

    pet_type: str
    config: PetConfig
    replaced: tuple[ReplacedCell, ...]
    added: tuple[ParameterFacts, ...]
    skipped: tuple[SkippedCell, ...]
    freezing: FreezeReport

    @property
    def trainable(self) -> tuple[ParameterFacts, ...]:
        """The parameters that training changes."""
        return tuple(decision.parameter for decision in self.freezing.decisions if decision.is_trained)

    @property
    def trainable_elements(self) -> int:
        """Numbers that training changes."""
        return sum(parameter.elements for parameter in self.trainable)

    @property
    def trainable_bytes(self) -> int:
        """The bytes that they take."""
        return sum(parameter.nbytes for parameter in self.trainable)

    @property
    def total_elements(self) -> int:
        """Numbers of the whole network."""
        return sum(decision.parameter.elements for decision in self.freezing.decisions)

    @property
    def trainable_percent(self) -> float:
        """The share of the network's numbers that training changes."""
        return 100 * self.trainable_elements / self.total_elements

    def __str__(self) -> str:
        lines = [
            f"{method_for(self.config).title}: replaced {len(self.replaced)} cells, added {len(self.added)} parameters",
            f"  trainable  {len(self.trainable)} parameters, {self.trainable_elements:,} numbers, "
            f"{self.trainable_bytes:,} bytes ({self.trainable_percent:.3g} %)",
        ]
        lines += [f"  skipped    {cell.path}: {cell.reason}" for cell in self.skipped]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Injection:
    """A network with a method, and how it became one.

    Attributes:
        network: The network to train.
        report: What was done.
    """

    network: Any
    report: InjectionReport


def get_pet_model(model: Cell | None = None, config: Any = None) -> Cell:
    """Add a method to a network and freeze what it does not train.

    Args:
        model: The network, which is changed; None: MindFormers builds it from the configuration.
        config: A `PetConfig`; a mapping, a run's configuration or an object of MindFormers, which are not changed.

    Returns:
        The network to train: the same one, or with a prefix one around it.

    Raises:
        MismatchError: The configuration does not fit the network.
        CorruptInputError: The configuration is wrong in itself.
    """
    network = inject(model, config).network
    assert isinstance(network, Cell)
    return network


def inject(model: Cell | None = None, config: Any = None) -> Injection:
    """The same as `get_pet_model`, with a report."""
    parsed = parse_pet_config(config)
    for warning in parsed.warnings:
        warnings.warn(warning, stacklevel=2)
    adapter = adapter_for(parsed)
    network = adapter.get_pretrained_model(config) if model is None else model
    skipped: tuple[SkippedCell, ...] = ()
    if isinstance(parsed, LayerPetConfig):
        skipped = select_layers(network, parsed, adapter.kinds).skipped
    cells = {slot.path: slot.cell for slot in slots_of(network)}
    parameters = {id(parameter) for parameter in network.get_parameters()}
    tuned = adapter.get_pet_model(network, parsed)
    freezing = adapter.freeze_pretrained_model(
        tuned, parsed.pet_type, freeze_include=parsed.freeze_include, freeze_exclude=parsed.freeze_exclude
    )
    replaced = tuple(
        ReplacedCell(path, type(before).__name__, type(after).__name__)
        for path, before, after in (
            (slot.path, cells.get(slot.path), slot.cell) for slot in (slots_of(tuned) if tuned is network else ())
        )
        if before is not None and after is not before
    )
    added = tuple(facts_of(one) for one in tuned.get_parameters() if id(one) not in parameters)
    report = InjectionReport(parsed.pet_type, parsed, replaced, added, skipped, freezing)
    _LOG.info("%s", report)
    return Injection(tuned, report)
