"""Saving the delta during training, and what `pet-merge` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import nn
from mindspore.dataset import NumpySlicesDataset
from networks import CLASSES, WIDTH, PlainNet, floats, output, seed, values

from ckpt_tools import merge, open_checkpoint
from ckpt_tools.fingerprint import target_fingerprint
from surgery import read_adapter_config
from surgery.errors import MismatchError, OutputExistsError, UsageError
from surgery.methods import LoraPetConfig
from surgery.network import DeltaCheckpoint, get_pet_model, save_delta
from surgery.pet_config import parse_pet_config

CONFIG = LoraPetConfig(lora_rank=4, lora_alpha=6, lora_dropout=0.0, target_modules=r".*\.dense|.*\.mlp\.\d")
STEPS = 6


def model_of(network: nn.Cell) -> mindspore.Model:
    optimizer = nn.Adam(network.trainable_params(), learning_rate=1e-2)
    return mindspore.Model(network, loss_fn=nn.MSELoss(), optimizer=optimizer)


def data() -> NumpySlicesDataset:
    samples = {"data": floats(4 * STEPS, WIDTH), "label": np.ones((4 * STEPS, CLASSES), np.float32)}
    return NumpySlicesDataset(samples, shuffle=False, num_parallel_workers=1).batch(4, num_parallel_workers=1)


def trained(folder: Path, *, epochs: int = 2, config: Any = CONFIG, **options: Any) -> nn.Cell:
    seed()
    network = get_pet_model(PlainNet(), config)
    callback = DeltaCheckpoint(folder, config, **options)
    model_of(network).train(epochs, data(), callbacks=[callback], dataset_sink_mode=False)
    return network


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_what_is_trained_is_saved_and_no_state_of_the_optimizer(tmp_path: Path) -> None:
    network = trained(tmp_path / "adapter")
    tensors = open_checkpoint(tmp_path / "adapter" / f"adapter-2_{STEPS}.ckpt").tensors
    expected = {parameter.name: parameter.asnumpy() for parameter in network.trainable_params()}
    assert {name: tensor.read_all().tobytes() for name, tensor in tensors.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert all("mindpet_delta_lora" in name for name in expected)


def test_the_newest_are_kept_and_files_of_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter-best.ckpt").write_bytes(b"of the user")
    (folder / "other-1_1.ckpt").write_bytes(b"of another run")
    trained(folder, every_steps=2, keep=3)
    kept = ["adapter-1_6.ckpt", "adapter-2_2.ckpt", "adapter-2_4.ckpt", "adapter-2_6.ckpt"][1:]
    assert saved(folder) == sorted([*kept, "adapter-best.ckpt", "other-1_1.ckpt", "adapter_config.json"])


def test_without_a_limit_all_are_kept(tmp_path: Path) -> None:
    trained(tmp_path / "adapter", every_steps=4, keep=0, prefix="delta")
    names = ["delta-1_4.ckpt", "delta-2_2.ckpt", "delta-2_6.ckpt"]
    assert saved(tmp_path / "adapter") == sorted([*names, "adapter_config.json"])


def test_no_part_of_a_file_is_left_and_an_older_one_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / f"adapter-1_{STEPS}.ckpt").write_bytes(b"an earlier run")
    trained(folder, epochs=1)
    assert saved(folder) == [f"adapter-1_{STEPS}.ckpt", "adapter_config.json"]
    assert len(open_checkpoint(folder / f"adapter-1_{STEPS}.ckpt").tensors) == 12


def test_the_configuration_beside_it_tells_a_merge_the_scale(tmp_path: Path) -> None:
    network = trained(tmp_path / "adapter")
    config = read_adapter_config(tmp_path / "adapter")
    assert (config.rank, config.alpha, config.target_modules) == (4, 6.0, CONFIG.target_modules)
    seed()
    base = PlainNet()
    mindspore.save_checkpoint(base, str(tmp_path / "base.ckpt"))
    merge(tmp_path / "base.ckpt", tmp_path / "adapter" / f"adapter-2_{STEPS}.ckpt", output=tmp_path / "merged.ckpt")
    plain = PlainNet()
    mindspore.load_checkpoint(str(tmp_path / "merged.ckpt"), plain, strict_load=True)
    inputs = (floats(3, WIDTH),)
    np.testing.assert_allclose(output(plain, inputs), output(network, inputs), rtol=0, atol=1e-5)


def test_the_fingerprint_is_that_of_the_changed_weights_in_the_bases_checkpoint(tmp_path: Path) -> None:
    seed()
    mindspore.save_checkpoint(PlainNet(), str(tmp_path / "base.ckpt"))
    trained(tmp_path / "adapter", format="safetensors")
    weights = open_checkpoint(tmp_path / "base.ckpt").tensors
    changed = list(open_checkpoint(tmp_path / "adapter" / f"adapter-2_{STEPS}.safetensors").tensors)
    expected = target_fingerprint(
        weights[f"{name.removesuffix('.mindpet_delta_lora_a')}.weight"] for name in changed if name.endswith("_lora_a")
    )
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["pet_surgery"]["base_fingerprint"] == expected
    file = open_checkpoint(tmp_path / "adapter" / f"adapter-2_{STEPS}.safetensors")
    assert file.metadata["pet_surgery.base_fingerprint"] == expected


@pytest.mark.parametrize("config", [CONFIG, {"pet_type": "adapter", "target_modules": r".*\.dense"}])
def test_the_configuration_is_read_back_as_it_was(tmp_path: Path, config: Any) -> None:
    trained(tmp_path / "adapter", config=config)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    section = written.get("pet_config") or written["pet_surgery"]["pet_config"]
    assert parse_pet_config(section) == parse_pet_config(config)


def test_a_merge_refuses_the_delta_of_another_method_with_the_reason(tmp_path: Path) -> None:
    trained(tmp_path / "adapter", config={"pet_type": "adapter", "target_modules": r".*\.dense"})
    with pytest.raises(MismatchError, match="layers with an activation"):
        read_adapter_config(tmp_path / "adapter")


def test_saving_by_hand_replaces_nothing_unless_it_may(tmp_path: Path) -> None:
    network = get_pet_model(PlainNet(), CONFIG)
    save_delta(network, tmp_path / "delta.ckpt", CONFIG)
    with pytest.raises(OutputExistsError):
        save_delta(network, tmp_path / "delta.ckpt", CONFIG)
    save_delta(network, tmp_path / "delta.ckpt", CONFIG, force=True)


def test_a_network_in_which_nothing_is_trained_has_no_delta(tmp_path: Path) -> None:
    network = PlainNet()
    for parameter in network.get_parameters():
        parameter.requires_grad = False
    with pytest.raises(MismatchError, match="nothing that is trained"):
        save_delta(network, tmp_path / "delta.ckpt", CONFIG)


@pytest.mark.parametrize("options", [{"keep": -1}, {"every_steps": -1}, {"format": "npz"}])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(UsageError, match="DeltaCheckpoint"):
        DeltaCheckpoint(tmp_path, CONFIG, **options)


def test_what_trains_a_network_may_be_handed_over_in_its_place(tmp_path: Path) -> None:
    network = get_pet_model(PlainNet(), CONFIG)
    step = nn.TrainOneStepCell(network, nn.Adam(network.trainable_params()))
    assert any(name.startswith("moment1") for name in values(step))
    save_delta(step, tmp_path / "delta.ckpt", CONFIG)
    names = set(open_checkpoint(tmp_path / "delta.ckpt").tensors)
    assert names == {parameter.name for parameter in network.trainable_params()}
