"""Freezing live networks, beside MindPet's `freeze_delta` and `freeze_modules`, and where that has traps."""

from __future__ import annotations

from pathlib import Path

import pytest
from mindpet.graph.freeze_utils import freeze_delta, freeze_modules
from mindspore import nn
from networks import PlainNet, PrefixNet

from surgery.errors import MismatchError
from surgery.network import LoraAdapter, PetAdapter, Ptuning2Adapter, freeze, freeze_from_config

RULE = r".*\.dense"


def trained(network: nn.Cell) -> list[str]:
    return [parameter.name for parameter in network.trainable_params()]


def with_lora() -> nn.Cell:
    return LoraAdapter.get_pet_model(PlainNet(), {"target_modules": RULE})


def with_prefix() -> nn.Cell:
    return Ptuning2Adapter.get_pet_model(PrefixNet(), {"pre_seq_len": 4})


@pytest.mark.parametrize(("make", "pet_type"), [(with_lora, "lora"), (with_prefix, "ptuning2"), (PlainNet, "bitfit")])
@pytest.mark.parametrize(
    ("include", "exclude"), [(None, None), (["*bias"], None), (None, ["*head*"]), (["*"], ["*head*"])]
)
def test_a_method_freezes_what_it_does_in_mindpet(make, pet_type, include, exclude) -> None:  # type: ignore[no-untyped-def]
    theirs, ours = make(), make()
    freeze_delta(theirs, pet_type, include, exclude)
    if not trained(theirs):
        with pytest.raises(MismatchError, match="nothing is left to train"):
            freeze(ours, pet_type, include=include, exclude=exclude)
        return
    freeze(ours, pet_type, include=include, exclude=exclude)
    assert trained(ours) == trained(theirs)


@pytest.mark.parametrize(("include", "exclude"), [(["*"], ["*bias"]), (["*.dense.*"], None), (["*weight"], ["*0*"])])
def test_globs_freeze_what_they_do_in_mindpet(include: list[str], exclude: list[str] | None) -> None:
    theirs, ours = PlainNet(), PlainNet()
    freeze_modules(theirs, include, exclude)
    freeze(ours, include=include, exclude=exclude)
    assert trained(ours) == trained(theirs)


def test_a_method_in_upper_case_is_the_method_where_mindpet_freezes_all() -> None:
    theirs, ours = with_lora(), with_lora()
    freeze_delta(theirs, "LoRA")
    assert trained(theirs) == []
    freeze(ours, "LoRA")
    assert {name.rpartition(".")[2] for name in trained(ours)} == {"mindpet_delta_lora_a", "mindpet_delta_lora_b"}


def test_a_method_trains_its_parameters_again_where_mindpet_leaves_them_frozen() -> None:
    theirs, ours = with_lora(), with_lora()
    for network in (theirs, ours):
        for parameter in network.get_parameters():
            parameter.requires_grad = False
    freeze_delta(theirs, "lora")
    assert trained(theirs) == []
    freeze(ours, "lora")
    assert len(trained(ours)) == 4


def test_globs_are_read_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "freeze.yaml").write_text("freeze: {include: ['*'], exclude: ['*head*']}\n")
    network = PlainNet()
    report = freeze_from_config(network, tmp_path / "freeze.yaml")
    assert trained(network) == list(report.trained) == ["head.weight"]
    assert "both match" in report.conflicts[0].reason


def test_the_base_adapter_freezes_by_name_as_the_design_has_it() -> None:
    network = with_lora()
    report = PetAdapter.freeze_pretrained_model(network, "lora")
    assert list(report.trained) == trained(network)
    assert len(report.frozen) == 17


def test_tokens_of_a_prefix_are_never_trained() -> None:
    network = with_prefix()
    report = freeze(network, "ptuning2")
    assert report.trained == ("mindpet_delta_ptuning2_embedding.embedding_table",)
    assert network.prefix_layers.mindpet_delta_ptuning2_prefix.requires_grad is False
