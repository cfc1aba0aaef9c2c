"""Adapters that pet-split writes, read by MindSpore and by MindFormers' own SLoRA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mindspore
import numpy as np
import pytest
from mindformers.pet.pet_config import SLoraConfig
from mindformers.pet.tuners.slora_adapter import SLoraAdapter
from mindformers.tools.register.config import DictConfig
from mindformers.trainer.utils import load_slora_ckpt
from split_cases import LORA, combined

from ckpt_tools import split

DELTA = LORA["mindpet"]


@pytest.fixture(autouse=True)
def adapter_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLoRA keeps the adapters of a process in a list of the class."""
    monkeypatch.setattr(SLoraAdapter, "adapter_names", ["base"])


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_mindspore_loads_the_delta(tmp_path: Path, format: str) -> None:
    split(combined(tmp_path, DELTA), alpha=8, format=format, output=tmp_path / "out")
    loaded = mindspore.load_checkpoint(str(tmp_path / "out" / f"adapter_model.{format}"), format=format)
    assert list(loaded) == list(DELTA)
    for name, parameter in loaded.items():
        assert np.array_equal(parameter.asnumpy(), DELTA[name])


def test_slora_reads_its_configuration_and_weights(tmp_path: Path) -> None:
    split(combined(tmp_path, DELTA), alpha=8, format="slora", output=tmp_path / "served")
    pet_config = DictConfig(pet_type="slora", adapter_path=str(tmp_path / "served"))
    config = SLoraAdapter.init_slora_config(pet_config)
    assert isinstance(config, SLoraConfig)
    assert (config.lora_num, config.lora_rank, config.lora_alpha) == (2, 4, 8)
    assert SLoraAdapter.adapter_names == ["base", "served"]
    assert set(config.target_modules.split("|")) == {".*wq", ".*wv"}

    # As SLoraLinear registers them: (adapters, rank, in) and (adapters, rank, out).
    layers = {name.rpartition(".")[0] for name in DELTA}
    shapes = {f"{layer}.{half}": (2, 4, 16) for layer in layers for half in ("lora_a", "lora_b")}
    network = SimpleNamespace(lora_adapter=SimpleNamespace(registered_loras=shapes, adapter_names=["base", "served"]))
    model_config = {"pet_config": pet_config}
    run = SimpleNamespace(model=SimpleNamespace(model_config=model_config), auto_trans_ckpt=False, use_parallel=False)
    loaded = load_slora_ckpt({}, run, network)
    assert set(loaded) == set(shapes)
    for layer in layers:
        a, b = (loaded[f"{layer}.lora_{half}"].asnumpy() for half in "ab")
        assert not a[0].any()
        assert np.array_equal(a[1], DELTA[f"{layer}.mindpet_delta_lora_a"])
        assert np.array_equal(b[1], 2 * DELTA[f"{layer}.mindpet_delta_lora_b"].T)  # alpha / rank
