"""LoRA of the parallel core's linear layers, whose parameters have names of their own."""

from __future__ import annotations

from networks import MODELS, values

from ckpt_tools import inject, open_checkpoint, save_checkpoint
from surgery.network import get_pet_model
from surgery.network.freezing import facts_of

PREFIX = "decoder.layers.0.self_attention."


def test_loras_of_the_parallel_core_are_called_and_ordered_as_there() -> None:
    network = MODELS["parallel_core"].make()
    save_checkpoint("base.ckpt", {f"{PREFIX}{name}": array for name, array in values(network).items()})
    config = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "target_modules": "linear_.*"}
    inject("base.ckpt", config=config, output="injected.ckpt")
    tuned = get_pet_model(network, config)
    expected = [(f"{PREFIX}{p.name}", tuple(p.shape), facts_of(p).dtype) for p in tuned.get_parameters()]
    found = [(name, one.shape, one.dtype.name) for name, one in open_checkpoint("injected.ckpt").tensors.items()]
    assert found == expected
    assert any("lora_A.weight" in name for name, *_ in found)
