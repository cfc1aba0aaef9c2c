"""Loading checkpoints of every format and spelling into networks, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from merge_cases import hugging_face_name, write_folder, write_peft
from mindspore import nn
from networks import PlainNet, changed, llama, seed, values

from ckpt_tools import save_checkpoint, transform
from ckpt_tools.layout import Layout
from examples.strategy_files import write_strategy
from surgery.errors import InputMissingError, MismatchError
from surgery.network import LoraAdapter, get_pet_model, load_ckpt

CONFIG = {"pet_type": "lora", "lora_rank": 4, "lora_dropout": 0.0, "target_modules": ".*wq|.*wv"}


def tuned(value: int = 1) -> nn.Cell:
    seed(value)
    return get_pet_model(llama(), CONFIG)


def random(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=array.shape).astype(array.dtype) for name, array in arrays.items()}


def split(network: nn.Cell) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    arrays = random(values(network))
    return (
        {name: array for name, array in arrays.items() if "lora" not in name},
        {name: array for name, array in arrays.items() if "lora" in name},
    )


def assert_has(network: nn.Cell, expected: dict[str, np.ndarray]) -> None:
    now = values(network)
    assert {name for name, array in expected.items() if now[name].tobytes() != array.tobytes()} == set()


@pytest.mark.parametrize("kind", ["x.ckpt", "x.safetensors", "folder-ckpt", "folder-safetensors"])
def test_a_base_in_any_format_is_loaded_and_a_fresh_adapter_kept(tmp_path: Path, kind: str) -> None:
    network = tuned()
    base, _ = split(network)
    if kind.startswith("folder"):
        write_folder(tmp_path / kind, base, suffix="." + kind.partition("-")[2])
    else:
        save_checkpoint(tmp_path / kind, base)
    before = values(network)
    report = load_ckpt(network, tmp_path / kind)
    assert_has(network, base)
    assert set(report.kept) == {name for name in before if "lora" in name}
    assert not any("lora" in name for name in changed(before, network))


def test_training_states_are_left_out_and_said(tmp_path: Path) -> None:
    network = tuned()
    base, delta = split(network)
    states = {f"adam_m.{name}": array for name, array in delta.items()} | {"epoch_num": np.array(3, np.int32)}
    save_checkpoint(tmp_path / "x.ckpt", base | delta | states)
    report = load_ckpt(network, tmp_path / "x.ckpt")
    assert set(report.dropped) == set(states)
    assert_has(network, base | delta)


SPELLINGS = {
    "mindpet": lambda layer, half: f"{layer}.mindpet_delta_lora_{half.lower()}",
    "mindpet-bare": lambda layer, half: f"{layer}.mindpet_delta_lora_{half}",
    "tk": lambda layer, half: f"{layer}.tk_delta_lora_{half.lower()}",
    "pynative": lambda layer, half: f"{layer}.lora_{half.lower()}",
    "parallel-core": lambda layer, half: f"{layer}.lora_{half}.weight",
    "peft": lambda layer, half: f"base_model.model.{hugging_face_name(layer)}.lora_{half}.weight",
}


@pytest.mark.parametrize("family", SPELLINGS)
def test_an_adapter_in_any_spelling_is_loaded_onto_the_base_that_is_there(tmp_path: Path, family: str) -> None:
    network = tuned()
    _, delta = split(network)
    renamed = {SPELLINGS[family](name.rpartition(".")[0], name[-1].upper()): array for name, array in delta.items()}
    if family == "peft":
        path = write_peft(tmp_path / "peft", renamed)
    else:
        path = tmp_path / "adapter.safetensors"
        save_checkpoint(path, renamed)
    before = values(network)
    report = load_ckpt(network, path)
    assert set(report.loaded) == delta.keys() == changed(before, network)
    assert_has(network, delta)


def test_a_hugging_face_folder_is_loaded_under_mindformers_names(tmp_path: Path) -> None:
    network = llama()
    base = random(values(network))
    write_folder(tmp_path / "hf", {hugging_face_name(name): array for name, array in base.items()})
    load_ckpt(network, tmp_path / "hf")
    assert_has(network, base)


def test_other_names_may_be_mapped(tmp_path: Path) -> None:
    network = PlainNet()
    base = random(values(network))
    save_checkpoint(tmp_path / "x.ckpt", {f"old.{name}": array for name, array in base.items()})
    load_ckpt(network, tmp_path / "x.ckpt", names={f"old.{name}": name for name in base})
    assert_has(network, base)


def test_values_are_rounded_to_the_networks_type_and_that_is_said(tmp_path: Path) -> None:
    network = PlainNet()
    base = {name: array.astype(np.float16) for name, array in random(values(network)).items()}
    save_checkpoint(tmp_path / "x.ckpt", base)
    report = load_ckpt(network, tmp_path / "x.ckpt")
    assert set(report.cast) == base.keys()
    assert_has(network, {name: array.astype(np.float32) for name, array in base.items()})


def misfit(tmp_path: Path, change: Any) -> MismatchError:
    """The error for a checkpoint that was changed, and that the network is as it was."""
    network = tuned()
    base, delta = split(network)
    arrays = base | delta
    change(arrays)
    save_checkpoint(tmp_path / "x.ckpt", arrays)
    before = values(network)
    with pytest.raises(MismatchError) as caught:
        load_ckpt(network, tmp_path / "x.ckpt")
    assert changed(before, network) == set()
    return caught.value


def test_what_is_missing_unexpected_or_of_another_shape_is_listed_at_once(tmp_path: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays["model.norm_out.weight"]
        del arrays["model.layers.0.attention.wq.mindpet_delta_lora_a"]
        arrays["lm_haed.weight"] = arrays.pop("lm_head.weight")
        arrays["model.layers.0.attention.wv.mindpet_delta_lora_b"] = np.zeros((4, 64), np.float32)

    text = str(error := misfit(tmp_path, change))
    assert "no model.norm_out.weight" in text
    assert "no model.layers.0.attention.wq.mindpet_delta_lora_a" in text
    assert "lm_haed.weight: unexpected" in text
    assert "Did you mean lm_head.weight" in text
    assert "shape (4, 64)" in text
    assert len(error.problems) == 5


def test_two_tensors_for_one_parameter_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    network = tuned()
    base, _ = split(network)
    name = next(iter(base))
    save_checkpoint(tmp_path / "x.ckpt", base | {"another": base[name] + 1})
    before = values(network)
    with pytest.raises(MismatchError, match=f"{name} and another: expected one tensor for a parameter"):
        load_ckpt(network, tmp_path / "x.ckpt", names={"another": name})
    assert changed(before, network) == set()


def test_an_adapter_of_which_a_half_is_missing_is_refused(tmp_path: Path) -> None:
    network = tuned()
    _, delta = split(network)
    delta.pop("model.layers.0.attention.wq.mindpet_delta_lora_b")
    save_checkpoint(tmp_path / "x.ckpt", delta)
    with pytest.raises(MismatchError, match=r"no model\.layers\.0\.attention\.wq\.mindpet_delta_lora_b"):
        load_ckpt(network, tmp_path / "x.ckpt")


def test_an_adapter_for_a_network_without_one_is_refused(tmp_path: Path) -> None:
    _, delta = split(tuned())
    save_checkpoint(tmp_path / "x.ckpt", delta)
    with pytest.raises(MismatchError, match="unexpected: the network has no such parameter"):
        load_ckpt(llama(), tmp_path / "x.ckpt")


def test_a_checkpoint_of_states_alone_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.ckpt", {"epoch_num": np.array(3, np.int32)})
    with pytest.raises(MismatchError, match="no tensor of the network at all"):
        load_ckpt(llama(), tmp_path / "x.ckpt")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        load_ckpt(PlainNet(), tmp_path / "x.ckpt")


@pytest.mark.parametrize("key", ["checkpoint_name_or_path", "load_checkpoint"])
def test_the_adapters_method_takes_a_configuration_that_names_the_file(tmp_path: Path, key: str) -> None:
    network = PlainNet()
    base = random(values(network))
    save_checkpoint(tmp_path / "x.ckpt", base)
    LoraAdapter.load_ckpt(network, {key: str(tmp_path / "x.ckpt")})
    assert_has(network, base)
    LoraAdapter.load_ckpt(network, tmp_path / "x.ckpt")


def test_mindspore_only_warns_of_what_is_missing(tmp_path: Path) -> None:
    """Why there is a loader of this project's own."""
    network = PlainNet()
    save_checkpoint(tmp_path / "x.ckpt", {"head.weight": values(network)["head.weight"]})
    missing, _ = mindspore.load_param_into_net(network, mindspore.load_checkpoint(str(tmp_path / "x.ckpt")))
    assert len(missing) == 16
    with pytest.raises(MismatchError, match=r"no blocks\.0\.dense\.weight"):
        load_ckpt(network, tmp_path / "x.ckpt")


def test_folders_of_ranks_are_put_together_by_their_strategy(tmp_path: Path) -> None:
    network = PlainNet()
    base = random(values(network))
    save_checkpoint(tmp_path / "x.ckpt", base)
    layout = Layout((2,), ((0,), ()))
    matrices = {name: layout for name, array in base.items() if array.ndim == 2}
    whole = {name: Layout((2,), ((),)) for name, array in base.items() if array.ndim == 1}
    write_strategy(tmp_path / "strategy.json", matrices | whole)
    transform(tmp_path / "x.ckpt", dst_strategy=tmp_path / "strategy.json", output=tmp_path / "ranks")
    assert (tmp_path / "ranks" / "rank_1").is_dir()
    load_ckpt(network, tmp_path / "ranks", strategy=tmp_path / "strategy.json")
    assert_has(network, base)


def test_checkpoint_2_0_is_loaded(tmp_path: Path) -> None:
    network = tuned()
    base, delta = split(network)
    save_checkpoint(tmp_path / "x.safetensors", base | delta)
    transform(tmp_path / "x.safetensors", format="iteration", output=tmp_path / "saved")
    load_ckpt(network, tmp_path / "saved")
    assert_has(network, base | delta)
