"""GPT-2, whose feed-forward weights are `(in, out)`: their biases show it to an injection."""

from __future__ import annotations

from pathlib import Path

import mindspore
import pytest
from networks import gpt2

from ckpt_tools import inject, open_checkpoint
from surgery.network import get_pet_model, load_ckpt
from surgery.network.freezing import facts_of

REG_RULES = r".*dense*|.*linear*|.*mapping*|.*projection*"  # the design document's


@pytest.mark.parametrize("pet_type", ["lora", "adapter"])
def test_all_layers_of_the_design_documents_rule_get_what_the_network_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pet_type: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"pet_type": pet_type, "reg_rules": REG_RULES}
    mindspore.save_checkpoint(gpt2(), "base.ckpt")
    report = inject("base.ckpt", config=config, output="injected.ckpt")
    network = get_pet_model(gpt2(), config)
    found = [(name, one.shape, one.dtype.name) for name, one in open_checkpoint("injected.ckpt").tensors.items()]
    assert found == [(p.name, tuple(p.shape), facts_of(p).dtype) for p in network.get_parameters()]
    assert {layer.rpartition(".")[2] for layer in report.layers} >= {"dense1", "mapping", "projection"}
    assert not load_ckpt(network, "injected.ckpt").kept
