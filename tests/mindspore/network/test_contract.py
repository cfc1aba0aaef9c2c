"""What holds for every method, on plain networks, in both modes: one suite, a class a method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import mindspore
import numpy as np
import pytest
from mindspore import nn
from networks import WIDTH, PlainNet, PrefixNet, changed, floats, output, seed, train, use_mode, values

from examples.ia3_adapter import Ia3Adapter
from examples.ia3_method import Ia3Config
from surgery.methods import (
    AdapterConfig,
    BitFitConfig,
    Initialiser,
    LayerKind,
    LayerPetConfig,
    LoraPetConfig,
    LowRankAdapterConfig,
    PetConfig,
    PrefixTuningConfig,
    Ptuning2Config,
    method_for,
)
from surgery.network import adapter_of, inject, load_ckpt, save_delta
from surgery.network.cells import slots_of
from surgery.network.layers import dtype_name, select_layers, target_of
from surgery.network.prefixes import shape_of

INPUTS = (floats(3, WIDTH),)
RULE = r".*\.dense|.*\.mlp\.\d"


@dataclass(frozen=True)
class Run:
    """A network that was built, adapted and trained."""

    base: dict[str, Any]
    base_output: np.ndarray
    network: nn.Cell
    expected: dict[str, Any]
    fresh: dict[str, np.ndarray]
    fresh_output: np.ndarray
    trained_output: np.ndarray
    losses: list[float]


@cache
def run(config: PetConfig, kind: type[nn.Cell], mode: str) -> Run:
    use_mode(mode)
    seed()
    network = kind()
    base = {parameter.name: parameter for parameter in network.get_parameters()}
    base_output = output(network, INPUTS)
    expected = described(config, network)
    tuned = inject(network, config).network
    fresh, fresh_output = values(tuned), output(tuned, INPUTS)
    losses = train(tuned, INPUTS)
    return Run(base, base_output, tuned, expected, fresh, fresh_output, output(tuned, INPUTS), losses)


def described(config: PetConfig, network: nn.Cell) -> dict[str, Any]:
    """What the framework-free description says of the parameters that are added."""
    method, layers, shape = method_for(config), [], None
    if isinstance(config, LayerPetConfig):
        selected = set(select_layers(network, config, frozenset(LayerKind)).paths)
        layers = [target_of(slot.cell) for slot in slots_of(network) if slot.path in selected]
    elif hasattr(network, "config"):
        shape = shape_of(network)
    return {parameter.name: parameter for parameter in method.add_parameters(config, layers, shape)}


class Contract:
    """The suite. A subclass says which method, and on which network."""

    config: ClassVar[PetConfig]
    kind: ClassVar[type[nn.Cell]] = PlainNet
    is_exact_when_fresh = False
    is_near_when_fresh = False
    agrees_within = 1e-4

    @pytest.fixture(params=["pynative", "graph"])
    def ran(self, request: pytest.FixtureRequest) -> Run:
        return run(self.config, self.kind, request.param)

    def test_the_bases_weights_are_the_same_objects_under_the_same_names(self, ran: Run) -> None:
        now = {parameter.name: parameter for parameter in ran.network.get_parameters()}
        assert ran.base.keys() <= now.keys()
        assert all(now[name] is parameter for name, parameter in ran.base.items())

    def test_exactly_the_methods_parameters_are_trained(self, ran: Run) -> None:
        trained = {parameter.name for parameter in ran.network.trainable_params()}
        assert trained == self.trained(ran)

    def trained(self, ran: Run) -> set[str]:
        return {name for name, parameter in ran.expected.items() if parameter.is_trained}

    def test_what_is_added_is_what_is_described(self, ran: Run) -> None:
        added = {p.name: p for p in ran.network.get_parameters() if p.name not in ran.base}
        facts = {name: (tuple(p.shape), dtype_name(p.dtype)) for name, p in added.items()}
        assert facts == {name: (p.shape, p.dtype) for name, p in ran.expected.items()}
        for name, parameter in ran.expected.items():
            assert_begins_with(ran.fresh[name], parameter.initialiser)

    def test_training_changes_every_parameter_of_the_method_and_no_bit_of_another(self, ran: Run) -> None:
        assert changed(ran.fresh, ran.network) == self.trained(ran)
        assert ran.losses[-1] < ran.losses[0]

    def test_a_fresh_network_computes_what_the_base_does(self, ran: Run) -> None:
        difference = np.abs(ran.fresh_output - ran.base_output).max()
        if self.is_exact_when_fresh:
            assert ran.fresh_output.tobytes() == ran.base_output.tobytes()
        elif self.is_near_when_fresh:
            assert 0 < difference < 0.01 * np.abs(ran.base_output).max()
        else:
            assert 0 < difference < np.inf

    def test_graph_and_pynative_mode_agree(self) -> None:
        graph, pynative = (run(self.config, self.kind, mode) for mode in ("graph", "pynative"))
        np.testing.assert_allclose(graph.trained_output, pynative.trained_output, rtol=0, atol=self.agrees_within)
        assert np.abs(graph.trained_output - graph.fresh_output).max() > 1e-2

    def another(self, value: int) -> nn.Cell:
        seed(value)
        use_mode("pynative")
        return inject(self.kind(), self.config).network

    def test_saved_whole_and_loaded_into_another_network_it_computes_the_same(self, tmp_path: Path) -> None:
        trained = run(self.config, self.kind, "pynative")
        mindspore.save_checkpoint(trained.network, str(tmp_path / "whole.ckpt"))
        other = self.another(2)
        report = load_ckpt(other, tmp_path / "whole.ckpt")
        assert (report.kept, report.cast) == ((), ())
        assert output(other, INPUTS).tobytes() == trained.trained_output.tobytes()

    @pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
    def test_the_delta_alone_loaded_onto_the_same_base_computes_the_same(self, tmp_path: Path, suffix: str) -> None:
        trained = run(self.config, self.kind, "pynative")
        save_delta(trained.network, tmp_path / f"delta{suffix}", self.config)
        other = self.another(1)
        report = load_ckpt(other, tmp_path / f"delta{suffix}")
        assert set(report.loaded) == self.trained(trained)
        assert output(other, INPUTS).tobytes() == trained.trained_output.tobytes()


def assert_begins_with(array: np.ndarray, initialiser: Initialiser) -> None:
    """Bounds and spread of what is described, not its bits: those are the framework's."""
    size, fan = np.abs(array.astype(np.float64)).max(), array.shape
    bounds = {
        "he_uniform": lambda: np.sqrt(6 / ((1 + initialiser.scale**2) * fan[-1])),
        "xavier_uniform": lambda: np.sqrt(6 / sum(fan)),
        "uniform": lambda: initialiser.scale,
        "normal": lambda: 5 * initialiser.scale,
    }
    if initialiser.kind in bounds:
        bound = bounds[initialiser.kind]()
        assert 0.3 * bound < size <= bound * 1.001, initialiser
    elif initialiser.kind == "arange":
        assert np.array_equal(array, np.arange(len(array)))
    else:
        assert np.all(array == {"zeros": 0, "ones": 1}[initialiser.kind])


class TestLora(Contract):
    config = LoraPetConfig(lora_rank=4, lora_dropout=0.0, target_modules=RULE)
    is_exact_when_fresh = True


class TestAdapter(Contract):
    config = AdapterConfig(bottleneck_size=8, target_modules=RULE)
    is_near_when_fresh = True


class TestLowRankAdapter(Contract):
    config = LowRankAdapterConfig(reduction_factor=2, low_rank_size=2, target_modules=RULE)


class TestBitFit(Contract):
    config = BitFitConfig()
    is_exact_when_fresh = True

    def trained(self, ran: Run) -> set[str]:
        return {name for name in ran.base if name.endswith("bias")}


class TestPtuning2(Contract):
    config = Ptuning2Config(pre_seq_len=4, prefix_projection=True, projection_dim=8, dropout_prob=0.0)
    kind = PrefixNet
    agrees_within = 1e-3  # its parameters are float16


class TestPtuning2WithoutProjection(Contract):
    config = Ptuning2Config(pre_seq_len=4, dropout_prob=0.0)
    kind = PrefixNet
    agrees_within = 1e-3


class TestPrefixTuning(Contract):
    config = PrefixTuningConfig(prefix_token_num=4, mid_dim=8, dropout_rate=0.0)
    kind = PrefixNet
    agrees_within = 1e-3


class TestIa3(Contract):
    """The method that docs/adapters.md adds."""

    config = Ia3Config(target_modules=RULE)
    is_exact_when_fresh = True

    def test_it_is_known_by_its_name(self) -> None:
        assert adapter_of("ia3") is Ia3Adapter
