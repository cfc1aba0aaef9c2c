"""GPT-2, trained by MindFormers' Trainer: the design document's example, and the feature card's."""

from __future__ import annotations

from pathlib import Path

from example_runs import run_example
from support_results import check_results

from ckpt_tools import open_checkpoint
from surgery import classify, read_adapter_config, selects
from surgery.naming import Role

SAVED = "saved adapter-1_4.ckpt adapter-2_4.ckpt adapter_config.json"


def assert_delta_of_lora(folder: Path, parameters: int) -> None:
    """Every tensor is LoRA's, was trained between the epochs, and belongs to a layer that the configuration names."""
    first, last = (open_checkpoint(folder / f"adapter-{epoch}_4.ckpt").tensors for epoch in (1, 2))
    config = read_adapter_config(folder)
    assert len(last) == parameters
    for name, tensor in last.items():
        parameter = classify(name)
        assert parameter.role in (Role.LORA_A, Role.LORA_B)
        assert selects(config, parameter.layer), parameter.layer
        assert tensor.read_all().tobytes() != first[name].read_all().tobytes(), name
    assert (config.rank, config.alpha) == (8, 16.0)


def test_the_design_documents_gpt2_with_lora_is_trained_by_the_trainer(tmp_path: Path) -> None:
    printed = run_example("examples.gpt2_with_lora", tmp_path / "run", folder=tmp_path)
    assert SAVED in printed
    assert_delta_of_lora(tmp_path / "run" / "adapter", 24)


def test_the_feature_cards_lora_is_trained_by_the_trainer(tmp_path: Path) -> None:
    printed = run_example("examples.feature_card", tmp_path, "gpt2_lora", folder=tmp_path)
    assert f"gpt2_lora {SAVED}" in printed
    assert_delta_of_lora(tmp_path / "gpt2_lora" / "adapter", 12)
    check_results("classic", "trainer", {"gpt2": {"lora": "examples/feature_card.py, examples/gpt2_with_lora.py"}})
