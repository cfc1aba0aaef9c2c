"""The examples that both pairs of packages run."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_runs import ROOT, run_example
from networks import PAIR
from support_results import check_results

from ckpt_tools import open_checkpoint

STEM = {"llama_ptuning2": "mindpet_delta_ptuning2", "llama_prefixtuning": "mindpet_delta_prefixtuning"}


def test_lora_on_a_plain_network_in_thirty_lines(tmp_path: Path) -> None:
    printed = run_example("examples.lora_on_a_plain_network", folder=tmp_path)
    assert "tuned and merged differ by" in printed
    text = (ROOT / "examples" / "lora_on_a_plain_network.py").read_text(encoding="utf-8")
    code = text.rpartition('"""')[2].splitlines()
    assert len([line for line in code if line.strip() and not line.startswith(("import", "from"))]) <= 30


def test_the_feature_cards_prefixes_are_trained_by_the_trainer(tmp_path: Path) -> None:
    printed = run_example("examples.feature_card", tmp_path, *STEM, folder=tmp_path)
    for run, stem in STEM.items():
        assert f"{run} saved adapter-1_4.ckpt adapter-2_4.ckpt adapter_config.json" in printed
        first, last = (
            open_checkpoint(tmp_path / run / "adapter" / f"adapter-{epoch}_4.ckpt").tensors for epoch in (1, 2)
        )
        assert len(last) == 5
        assert all(name.startswith(stem) for name in last)
        assert all(first[name].read_all().tobytes() != last[name].read_all().tobytes() for name in last)
    trained = dict.fromkeys(("ptuning2", "prefixtuning"), "examples/feature_card.py")
    check_results(PAIR, "trainer", {"llama": trained})


@pytest.mark.parametrize("name", ["gpt2_lora", "gpt2_with_lora", *STEM])
def test_every_run_keeps_the_strategy_of_all_parameters(name: str) -> None:
    from mindformers.tools.register import MindFormerConfig

    run = MindFormerConfig(str(ROOT / "examples" / "runs" / f"{name}.yaml"))
    assert run.parallel.strategy_ckpt_config.only_trainable_params is False
