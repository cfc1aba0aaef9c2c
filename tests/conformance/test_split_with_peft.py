"""Adapters that pet-split writes, loaded by PEFT: the network speaks as the one that they were cut from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft_models import NETWORKS, load_adapted, logits, lora, write_adapter, write_base
from rank_folders import assert_same_arrays, read_arrays
from safetensors.torch import load_file, save_file

from ckpt_tools import merge, split

LLAMA = NETWORKS["llama"]


def loaded_without_a_word(base: Path, adapter: Path, recwarn: pytest.WarningsRecorder) -> PeftModel:
    """The adapter on its base, with nothing missing and nothing left over."""
    model = PeftModel.from_pretrained(LLAMA.load(base), adapter)
    said = [str(warning.message) for warning in recwarn if "missing" in str(warning.message).lower()]
    assert said == []
    return model.double().eval()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 7}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": ["k_proj"], "use_rslora": True},
        {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "use_dora": True},
    ],
    ids=lambda options: ",".join(options["target_modules"]) + "".join(f",{key}" for key in list(options)[1:2]),
)
def test_an_adapter_goes_to_mindformers_and_back_unchanged(
    tmp_path: Path, options: dict[str, object], recwarn: pytest.WarningsRecorder
) -> None:
    base = write_base(LLAMA, tmp_path / "base", torch.float32)
    adapter = write_adapter(LLAMA, base, tmp_path / "peft", lora(**options))
    if options.get("use_dora") or "embed_tokens" in options["target_modules"]:  # type: ignore[operator]
        split(adapter, format="peft", output=tmp_path / "back")  # MindPet has neither
    else:
        split(adapter, format="mindformers", output=tmp_path / "ms")
        split(tmp_path / "ms", format="peft", output=tmp_path / "back")
    assert_same_arrays(
        read_arrays(tmp_path / "back" / "adapter_model.safetensors"), read_arrays(adapter / "adapter_model.safetensors")
    )
    expected = logits(load_adapted(LLAMA, base, adapter))
    found = logits(loaded_without_a_word(base, tmp_path / "back", recwarn))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def fine_tuned(base: Path, folder: Path, *, rank: int) -> Path:
    """All matrices changed by products of a rank, and a norm by more."""
    torch.manual_seed(5)
    weights = load_file(base / "model.safetensors")
    for name, weight in weights.items():
        if "proj" in name:
            weight += 0.1 * torch.randn(weight.shape[0], rank) @ torch.randn(rank, weight.shape[1])
        elif "input_layernorm" in name:
            weight += 0.1
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for file in base.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_an_extracted_adapter_speaks_as_the_fine_tune(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    base = write_base(LLAMA, tmp_path / "base", torch.float32)
    tuned = fine_tuned(base, tmp_path / "tuned", rank=3)
    report = split(tuned, base=base, energy=1.0, format="peft", output=tmp_path / "adapter")
    assert {layer.rank for layer in report.extracted} == {3}
    expected, before = logits(LLAMA.load(tuned)), logits(LLAMA.load(base))
    assert float(torch.max(torch.abs(expected - before))) > 0.1
    adapted = logits(loaded_without_a_word(base, tmp_path / "adapter", recwarn))
    torch.testing.assert_close(adapted, expected, rtol=0, atol=2e-5)
    merge(base, tmp_path / "adapter", output=tmp_path / "merged")
    torch.testing.assert_close(logits(LLAMA.load(tmp_path / "merged")), expected, rtol=0, atol=2e-5)
