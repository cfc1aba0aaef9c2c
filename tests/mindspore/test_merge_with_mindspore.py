"""Merges between real MindSpore files and networks, in both directions, and MindFormers' own merge beside ours."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import mindspore
import ml_dtypes
import numpy as np
import pytest
from merge_cases import Arrays, assert_all_merged, factors, llama, mindpet, read, updates
from mindformers import LlamaConfig, LlamaForCausalLM
from mindformers.pet import get_pet_model
from mindpet.delta import LoRADense
from mindspore import Parameter, Tensor, nn

from ckpt_tools import merge

TYPES = {"fp32": mindspore.float32, "bf16": mindspore.bfloat16, "fp16": mindspore.float16}


def tensor_of(array: np.ndarray) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return Tensor(array.astype(np.float32), mindspore.bfloat16)
    return Tensor(array)


def save(path: Path, arrays: Arrays, **options: object) -> Path:
    """What `mindspore.save_checkpoint` writes for these arrays."""
    parameters = [{"name": name, "data": tensor_of(array)} for name, array in arrays.items()]
    mindspore.save_checkpoint(parameters, str(path), **options)
    return path


def values(parameter: Parameter) -> np.ndarray:
    return parameter.astype(mindspore.float32).asnumpy()


class Llama(nn.Cell):
    """Parameters under the names of a LLaMA, to be loaded into strictly."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        zeros = [Parameter(tensor_of(np.zeros_like(array)), name=name) for name, array in arrays.items()]
        self.all = mindspore.ParameterTuple(zeros)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("output", ["merged.ckpt", "merged.safetensors"])
def test_a_merge_of_mindspores_files_loads_strictly_into_a_network(tmp_path: Path, dtype: str, output: str) -> None:
    base, pairs = llama(dtype), factors()
    path = tmp_path / output
    merge(save(tmp_path / "base.ckpt", base), save(tmp_path / "lora.ckpt", mindpet(pairs)), output=path, alpha=8)
    assert_all_merged(path, base, updates(pairs, 2.0))
    loaded = mindspore.load_checkpoint(str(path), format=path.suffix[1:])
    network = Llama(base)
    assert mindspore.load_param_into_net(network, loaded, strict_load=True) == ([], [])
    for parameter in network.get_parameters():
        assert parameter.dtype == TYPES[dtype]
        assert values(parameter).tobytes() == read(path)[parameter.name].astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("with_crc", [True, False])
def test_the_ckpt_is_byte_for_byte_what_mindspore_would_write(tmp_path: Path, dtype: str, with_crc: bool) -> None:
    base = {**llama(dtype), "step": np.array(3, np.int32), "flags": np.array([True, False])}
    save(tmp_path / "base.ckpt", base, crc_check=with_crc)
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "merged.ckpt", alpha=8)
    save(tmp_path / "theirs.ckpt", read(tmp_path / "merged.ckpt"), crc_check=with_crc)
    assert (tmp_path / "merged.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


def test_safetensors_of_mindspore_are_merged_and_read_by_it(tmp_path: Path) -> None:
    base, pairs = llama("bf16"), factors()
    save(tmp_path / "base.safetensors", base, format="safetensors")
    save(tmp_path / "lora.safetensors", mindpet(pairs), format="safetensors")
    output = tmp_path / "merged.safetensors"
    merge(tmp_path / "base.safetensors", tmp_path / "lora.safetensors", output=output, alpha=8)
    in_their_order = {name: base[name] for name in read(tmp_path / "base.safetensors")}
    assert_all_merged(output, in_their_order, updates(pairs, 2.0))
    loaded = mindspore.load_checkpoint(str(output), format="safetensors")
    for name, array in read(output).items():
        assert values(loaded[name]).tobytes() == array.astype(np.float32).tobytes()


def test_the_result_of_mindformers_own_merge_is_ours_within_its_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, pairs = llama("fp32"), factors()
    trained = save(tmp_path / "trained.ckpt", {**base, **mindpet(pairs)})
    (tmp_path / "theirs").mkdir()
    options = {"--src_ckpt_path_or_dir": trained, "--dst_ckpt_dir": tmp_path / "theirs", "--lora_scaling": 2.0}
    monkeypatch.setattr(sys, "argv", ["merge", *(str(word) for option in options.items() for word in option)])
    runpy.run_module("mindformers.tools.transform_ckpt_lora", run_name="__main__")
    merge(trained, output=tmp_path / "ours.ckpt", alpha=8)
    theirs, ours = read(tmp_path / "theirs" / "merged_lora.ckpt"), read(tmp_path / "ours.ckpt")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        if name in updates(pairs, 2.0):
            np.testing.assert_allclose(theirs[name], array, rtol=0, atol=4 * 2.0**-24)
        else:
            assert theirs[name].tobytes() == array.tobytes()


class TwoLayers(nn.Cell):
    def __init__(self, first: nn.Cell, second: nn.Cell) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def construct(self, inputs: Tensor) -> Tensor:
        return self.second(mindspore.ops.relu(self.first(inputs)))


def random_b(network: nn.Cell) -> None:
    """B is zero before the training."""
    generator = np.random.default_rng(0)
    for parameter in network.get_parameters():
        if parameter.name.lower().endswith("lora_b"):
            parameter.set_data(Tensor(generator.normal(0, 0.3, parameter.shape).astype(np.float32)))


def outputs_differ_by(a: Tensor, b: Tensor) -> float:
    return float(np.max(np.abs(a.asnumpy() - b.asnumpy())))


@pytest.mark.parametrize("alone", [True, False])
def test_mindpets_cells_and_plain_cells_with_merged_weights_agree(tmp_path: Path, alone: bool) -> None:
    def lora(size: int, to: int) -> nn.Cell:
        return LoRADense(size, to, lora_rank=4, lora_alpha=6, compute_dtype=mindspore.float32)

    tuned = lora(24, 40) if alone else TwoLayers(lora(24, 40), lora(40, 16))
    plain = nn.Dense(24, 40) if alone else TwoLayers(nn.Dense(24, 40), nn.Dense(40, 16))
    random_b(tuned)
    names = [parameter.name for parameter in tuned.get_parameters()]
    assert ("mindpet_delta_lora_A" in names) == alone, "alone, a cell spells its parameters bare"
    mindspore.save_checkpoint(tuned, str(tmp_path / "trained.ckpt"))
    merge(tmp_path / "trained.ckpt", output=tmp_path / "merged.ckpt", alpha=6)
    loaded = mindspore.load_checkpoint(str(tmp_path / "merged.ckpt"))
    assert mindspore.load_param_into_net(plain, loaded, strict_load=True) == ([], [])
    inputs = Tensor(np.random.default_rng(1).normal(size=(8, 24)).astype(np.float32))
    tuned.set_train(False)
    assert outputs_differ_by(tuned(inputs), plain(inputs)) < 1e-5
    base = {name: array for name, array in read(tmp_path / "trained.ckpt").items() if "lora" not in name}
    mindspore.load_param_into_net(plain, {name: Parameter(Tensor(array)) for name, array in base.items()})
    assert outputs_differ_by(tuned(inputs), plain(inputs)) > 0.1, "the adapter does something"


def test_a_llama_of_mindformers_with_lora_gives_the_logits_of_the_plain_one_with_merged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # get_pet_model writes output/adapter_config.json

    def network() -> nn.Cell:
        types = ("compute_dtype", "param_init_type", "layernorm_compute_type", "rotary_dtype", "softmax_compute_type")
        sizes = {"vocab_size": 128, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "multiple_of": 32}
        without = {"use_flash_attention": False, "fused_rms_norm": False, "use_rope_slice": True}  # as a CPU needs it
        return LlamaForCausalLM(
            LlamaConfig(batch_size=2, seq_length=16, **sizes, **without, **dict.fromkeys(types, "float32"))
        )

    plain = network()
    pet_config = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}
    tuned = get_pet_model(network(), {**pet_config, "target_modules": ".*wq|.*wk|.*wv|.*wo|.*w1|.*w2|.*w3"})
    random_b(tuned)
    zeros = {f"adam_m.{p.name}": Tensor(np.zeros(p.shape, np.float32)) for p in tuned.trainable_params()}
    states = [{"name": name, "data": data} for name, data in zeros.items()]
    parameters = [{"name": p.name, "data": p} for p in tuned.get_parameters()]
    mindspore.save_checkpoint(parameters + states, str(tmp_path / "trained.ckpt"), append_dict={"epoch_num": 1})
    (tmp_path / "run.yaml").write_text(
        "model:\n  model_config:\n    pet_config:\n      pet_type: lora\n      lora_rank: 4\n      lora_alpha: 8\n"
        "      target_modules: '.*wq|.*wk|.*wv|.*wo|.*w1|.*w2|.*w3'\n"
    )
    report = merge(tmp_path / "trained.ckpt", output=tmp_path / "merged.ckpt", config=tmp_path / "run.yaml")
    assert len(report.weights) == 14
    assert report.adapters[0].families == ("mindpet",)
    loaded = mindspore.load_checkpoint(str(tmp_path / "merged.ckpt"))
    assert mindspore.load_param_into_net(plain, loaded, strict_load=True) == ([], [])
    ids = Tensor(np.random.default_rng(1).integers(1, 120, (2, 16)), mindspore.int32)
    for cell in (plain, tuned):
        cell.set_train(False)
    ours, theirs = (np.concatenate([t.asnumpy().ravel() for t in cell(ids) if t.ndim > 1]) for cell in (plain, tuned))
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
