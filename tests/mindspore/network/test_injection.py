"""The front door: networks that are brought or built, what is reported, and what is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, nn
from networks import IS_CLASSIC, MODELS, PlainNet, llama, output, seed, train, use_mode

import surgery
from surgery.errors import CorruptInputError, MismatchError, UsageError
from surgery.methods import BitFitConfig, LoraPetConfig
from surgery.network import LoraAdapter, PetAdapter, get_pet_model, inject

INPUTS = MODELS["plain"].inputs


def lora(**options: Any) -> dict[str, Any]:
    return {"pet_type": "lora", "lora_rank": 4, "lora_dropout": 0.0, **options}


def test_a_report_says_what_was_replaced_and_what_is_trained() -> None:
    report = inject(PlainNet(), lora(target_modules=r"blocks\.1\..*|head")).report
    assert [(cell.path, cell.before, cell.after) for cell in report.replaced] == [
        ("blocks.1.dense", "Dense", "LoRADense"),
        ("blocks.1.mlp.0", "Dense", "LoRADense"),
        ("blocks.1.mlp.1", "Dense", "LoRADense"),
        ("head", "Dense", "LoRADense"),
    ]
    elements = 4 * (16 + 16) + 4 * (16 + 32) + 4 * (32 + 16) + 4 * (16 + 4)
    assert (len(report.added), report.trainable_elements, report.trainable_bytes) == (8, elements, 4 * elements)
    base = sum(int(parameter.size) for parameter in PlainNet().get_parameters())
    assert report.trainable_percent == pytest.approx(100 * elements / (base + elements))
    assert {cell.path: cell.reason for cell in report.skipped}["blocks.1.norm"] == (
        "is a LayerNorm, which is no linear layer"
    )
    assert "replaced 4 cells, added 8 parameters" in str(report)
    assert f"{elements:,} numbers" in str(report)


def test_a_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="surgery"):
        get_pet_model(PlainNet(), lora(target_modules="head"))
    assert "replaced 1 cells" in caplog.text


def test_a_rule_that_matches_nothing_lists_near_names_and_changes_nothing() -> None:
    network = PlainNet()
    with pytest.raises(MismatchError, match=r"matches the name of no linear layer.*Near names: dense"):
        get_pet_model(network, lora(target_modules="dence"))
    assert all(parameter.requires_grad for parameter in network.get_parameters())


def test_without_a_rule_mindformers_default_is_taken() -> None:
    report = inject(PlainNet(), lora()).report
    assert [cell.path for cell in report.replaced] == ["blocks.0.dense", "blocks.1.dense"]


def test_rules_on_names_begin_where_mindformers_does_and_rules_on_paths_reach_everything() -> None:
    report = inject(llama(), lora(target_modules=".*wq|lm_head")).report
    assert [cell.path for cell in report.replaced] == ["model.layers.0.attention.wq"]
    assert report.skipped[0].path == "lm_head"
    assert "a rule on paths reaches it" in report.skipped[0].reason
    report = inject(llama(), lora(target_modules=r".*\.wq|lm_head")).report
    assert [cell.path for cell in report.replaced] == ["model.layers.0.attention.wq", "lm_head"]


def test_a_layer_that_hangs_in_two_places_is_replaced_by_one_in_both() -> None:
    class Shared(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Dense(16, 16)
            self.second = nn.SequentialCell(self.first)

        def construct(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    network = get_pet_model(Shared(), lora(target_modules="first|second|0"))
    assert network.first is network.second[0]
    assert len(network.trainable_params()) == 2


def test_two_layers_of_one_weight_have_adapters_of_their_own() -> None:
    class Tied(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Dense(16, 16), nn.Dense(16, 16)
            self.second.weight = self.first.weight

        def construct(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    network = get_pet_model(Tied(), lora(target_modules="first|second"))
    assert network.first.weight is network.second.weight
    assert [parameter.name for parameter in network.trainable_params()] == [
        *("first.mindpet_delta_lora_a", "first.mindpet_delta_lora_b"),
        *("second.mindpet_delta_lora_a", "second.mindpet_delta_lora_b"),
    ]


def test_two_weights_of_one_name_are_refused() -> None:
    class Twice(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.first, self.second = nn.Dense(4, 4), nn.Dense(4, 4)

    with pytest.raises(CorruptInputError, match=r"first and second: .*weights of one name, 'weight'"):
        get_pet_model(Twice(), lora(target_modules="first|second"))


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_a_network_that_was_called_before_computes_with_what_was_put_in(mode: str) -> None:
    use_mode(mode)
    network = PlainNet()
    base = output(network, INPUTS)
    get_pet_model(network, lora(target_modules=r".*\.mlp\.\d"))
    train(network, INPUTS)
    assert np.abs(output(network, INPUTS) - base).max() > 1e-3


def test_a_layer_within_a_sequential_cell_is_called() -> None:
    network = get_pet_model(PlainNet(), lora(target_modules=r".*\.mlp\.\d"))
    block = network.blocks[0].mlp
    assert [type(cell).__name__ for cell in block.cell_list] == ["LoRADense", "LoRADense"]


def test_a_layer_that_has_an_adapter_gets_no_second_one() -> None:
    network = get_pet_model(PlainNet(), lora(target_modules="dense"))
    with pytest.raises(
        MismatchError, match=r"blocks\.0\.dense is a LoRADense, a linear layer with a computation of its own"
    ):
        get_pet_model(network, lora(target_modules="dense"))
    report = inject(network, lora(target_modules="dense|head")).report
    assert [cell.path for cell in report.replaced] == ["head"]


def test_globs_of_the_configuration_are_applied_behind_the_method() -> None:
    network = get_pet_model(PlainNet(), lora(target_modules="head", freeze_exclude=["*norm*"]))
    names = [parameter.name for parameter in network.trainable_params()]
    assert names[:4] == ["blocks.0.norm.gamma", "blocks.0.norm.beta", "blocks.1.norm.gamma", "blocks.1.norm.beta"]
    assert len(names) == 6


def test_a_long_prefix_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="5,000 samples"):
        get_pet_model(llama(), {"pet_type": "ptuning2", "pre_seq_len": 61})


MODEL_CONFIG = {
    "type": "LlamaConfig",
    "batch_size": 2,
    "seq_length": 16,
    "vocab_size": 128,
    "hidden_size": 64,
    "num_layers": 1,
    "num_heads": 4,
    **dict.fromkeys(("compute_dtype", "param_init_type", "layernorm_compute_type", "rotary_dtype"), "float32"),
    "softmax_compute_type": "float32",
    "multiple_of": 32,
    "use_rope_slice": True,
    **dict.fromkeys(("fused_rms_norm", "use_flash_attention"), False),
}
SECTION = lora(target_modules=".*wq")
TODAY = {"model": {"model_config": {**MODEL_CONFIG, "pet_config": SECTION}, "arch": {"type": "LlamaForCausalLM"}}}
FIRST = {
    "model": {
        "model_config": MODEL_CONFIG,
        "arch": {"type": "LlamaForCausalLM", "pet": {"pet_type": "lora", "pet_config": SECTION}},
    }
}


@pytest.mark.parametrize("run", [TODAY, FIRST], ids=["model_config", "arch"])
def test_a_network_is_built_of_a_runs_configuration(run: dict[str, Any]) -> None:
    before = copy.deepcopy(run)
    seed()
    built = get_pet_model(None, run)
    assert run == before
    seed()
    brought = get_pet_model(llama(), SECTION)
    assert type(built).__name__ == "LlamaForCausalLM"
    inputs = MODELS["llama"].inputs
    assert output(built, inputs).tobytes() == output(brought, inputs).tobytes()


def test_an_adapter_builds_the_network_without_the_method() -> None:
    network = PetAdapter.get_pretrained_model(TODAY)
    assert not any("lora" in parameter.name for parameter in network.get_parameters())
    adapted = LoraAdapter.get_pet_model(None, TODAY)
    assert any("lora" in parameter.name for parameter in adapted.get_parameters())


@pytest.mark.parametrize("config", [lora(), LoraPetConfig(), {"model": {}, "pet_config": lora()}])
def test_a_configuration_that_describes_no_network_cannot_be_built(config: Any) -> None:
    with pytest.raises(UsageError, match=r"describes no network.*Or hand over the network itself"):
        get_pet_model(None, config)


def test_the_base_adapter_stands_for_the_method_that_is_named() -> None:
    network = PetAdapter.get_pet_model(PlainNet(), lora(target_modules="head"))
    assert type(network.head).__name__ == "LoRADense"
    assert all(parameter.requires_grad for parameter in network.get_parameters()), "adding alone freezes nothing"


def test_an_adapter_of_another_method_refuses() -> None:
    with pytest.raises(MismatchError, match="expected 'lora'"):
        LoraAdapter.get_pet_model(PlainNet(), BitFitConfig())


def test_the_package_hands_out_what_networks_need() -> None:
    assert surgery.get_pet_model is get_pet_model
    assert surgery.LoraAdapter is LoraAdapter
    assert set(surgery.network.__all__) == surgery._OF_NETWORKS
    with pytest.raises(AttributeError, match="no attribute 'LoraAdaptor'"):
        _ = surgery.LoraAdaptor


def test_every_name_of_the_package_is_there_and_sorted() -> None:
    names = surgery.network.__all__
    assert [name for name in names if not hasattr(surgery.network, name)] == []
    assert list(names) == sorted(names, key=lambda name: (not name[0].isupper(), name))


def test_the_pair_of_packages_is_one_that_is_supported() -> None:
    import mindformers
    import mindspore

    versions = (mindformers.__version__, mindspore.__version__)
    assert versions == (("1.3.2", "2.7.2") if IS_CLASSIC else ("1.9.0", "2.9.0"))
