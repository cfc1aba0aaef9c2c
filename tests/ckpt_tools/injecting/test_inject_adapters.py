"""`--adapter`: a trained adapter of any family in the place of fresh parameters, all of it and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inject_cases import ADAPTER, BITFIT, LORA, LOW_RANK, PTUNING2, WEIGHTS, injected, refusal, with_biases
from merge_cases import Arrays, add_crc, contents, factors, hugging_face, mindpet, peft, random, read, write, write_peft

from ckpt_tools import merge, split

PAIRS = factors()


def spelled(family: str) -> Arrays:
    leaves = {
        "mindpet": ("mindpet_delta_lora_a", "mindpet_delta_lora_b"),
        "mindpet-bare": ("mindpet_delta_lora_A", "mindpet_delta_lora_B"),
        "tk": ("tk_delta_lora_a", "tk_delta_lora_b"),
        "pynative": ("lora_a", "lora_b"),
        "parallel-core": ("lora_A.weight", "lora_B.weight"),
    }[family]
    return {f"{name[:-2]}.{leaves['AB'.index(name[-1])]}": array for name, array in PAIRS.items()}


def assert_grafted(path: Path) -> None:
    found = read(path)
    assert {name: found[name].tobytes() for name in mindpet(PAIRS)} == {
        name: array.tobytes() for name, array in mindpet(PAIRS).items()
    }
    assert [name for name in found if "delta" not in name] == list(WEIGHTS)


@pytest.mark.parametrize("family", ["mindpet", "mindpet-bare", "tk", "pynative", "parallel-core"])
def test_every_family_gets_this_networks_names(tmp_path: Path, family: str) -> None:
    write(tmp_path / "lora.safetensors", spelled(family))
    report = injected(tmp_path, adapter=tmp_path / "lora.safetensors")
    assert_grafted(tmp_path / "out.ckpt")
    assert {one.origin for one in report.added} == set(spelled(family))


def test_a_peft_folder_on_hugging_faces_names_is_translated(tmp_path: Path) -> None:
    write_peft(tmp_path / "peft", peft(PAIRS))
    report = injected(tmp_path, adapter=tmp_path / "peft")
    assert_grafted(tmp_path / "out.ckpt")
    assert report.adapter_names == "translated to mindformers names"


def test_a_grafted_network_merges_as_base_and_adapter_do(tmp_path: Path) -> None:
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    injected(tmp_path, adapter=tmp_path / "lora.ckpt")
    merge(tmp_path / "out.ckpt", output=tmp_path / "of-grafted.ckpt")
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, output=tmp_path / "of-both.ckpt")
    assert contents(tmp_path / "of-grafted.ckpt") == contents(tmp_path / "of-both.ckpt")


def test_a_scale_of_its_own_for_some_layers_is_refused(tmp_path: Path) -> None:
    write_peft(tmp_path / "peft", peft(PAIRS), alpha_pattern={"v_proj": 64})
    text = refusal(tmp_path, 5, adapter=tmp_path / "peft")
    assert "a scale of 16 for model.layers.0.self_attn.v_proj" in text
    assert "one scale for all layers" in text


def test_patterns_that_say_the_networks_scale_are_accepted(tmp_path: Path) -> None:
    patterns = {"v_proj": LORA["lora_alpha"], "q_proj": LORA["lora_alpha"]}
    write_peft(tmp_path / "peft", peft(PAIRS), lora_alpha=64, alpha_pattern=patterns)
    injected(tmp_path, adapter=tmp_path / "peft")
    assert_grafted(tmp_path / "out.ckpt")


@pytest.mark.parametrize("check_crc", [False, True])
def test_the_crc_of_an_adapter_is_checked(tmp_path: Path, check_crc: bool) -> None:
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    add_crc(tmp_path / "lora.ckpt")
    report = injected(tmp_path, adapter=tmp_path / "lora.ckpt", check_crc=check_crc)
    assert report.crc_checked == (str(tmp_path / "lora.ckpt"),)
    data = bytearray((tmp_path / "lora.ckpt").read_bytes())
    data[-30] ^= 1
    (tmp_path / "lora.ckpt").write_bytes(data)
    for path in tmp_path.glob("out.*"):
        path.unlink()
    assert "CRC-32" in refusal(tmp_path, 4, adapter=tmp_path / "lora.ckpt", check_crc=check_crc)


def test_an_adapter_of_another_base_is_warned_of(tmp_path: Path) -> None:
    own = injected(tmp_path, only_delta=True, output=tmp_path / "lora.safetensors")
    report = injected(tmp_path, adapter=tmp_path / "lora.safetensors", output=tmp_path / "same.ckpt")
    assert own.warnings == report.warnings == ()
    others = {name: array + array.dtype.type(1) for name, array in WEIGHTS.items()}
    report = injected(tmp_path, base=others, adapter=tmp_path / "lora.safetensors", output=tmp_path / "other.ckpt")
    (warning,) = report.warnings
    assert "lora.safetensors: an adapter of the base pet-ft1:" in warning


@pytest.mark.parametrize("config", [ADAPTER, LOW_RANK, PTUNING2], ids=lambda config: config["pet_type"])
def test_what_another_injection_wrote_is_grafted_for_every_method(tmp_path: Path, config: dict[str, object]) -> None:
    injected(tmp_path, config, output=tmp_path / "delta.ckpt", only_delta=True, seed=5)
    delta = read(tmp_path / "delta.ckpt")
    injected(tmp_path, config, adapter=tmp_path / "delta.ckpt")
    found = read(tmp_path / "out.ckpt")
    assert {name: found[name].tobytes() for name in delta} == {name: one.tobytes() for name, one in delta.items()}


def test_the_tokens_of_a_prefix_which_training_leaves_may_be_missing(tmp_path: Path) -> None:
    injected(tmp_path, PTUNING2, output=tmp_path / "delta.ckpt", only_delta=True, seed=5)
    delta = read(tmp_path / "delta.ckpt")
    tokens = delta.pop("mindpet_delta_ptuning2_prefix")
    write(tmp_path / "trained.ckpt", delta)
    injected(tmp_path, PTUNING2, adapter=tmp_path / "trained.ckpt")
    assert read(tmp_path / "out.ckpt")["mindpet_delta_ptuning2_prefix"].tobytes() == tokens.tobytes()


def test_bitfits_biases_replace_those_of_the_base(tmp_path: Path) -> None:
    base = with_biases()
    biases = {name: random(9, *array.shape) for name, array in base.items() if name.endswith("bias")}
    write(tmp_path / "bitfit.ckpt", biases)
    report = injected(tmp_path, BITFIT, base, adapter=tmp_path / "bitfit.ckpt")
    found = read(tmp_path / "out.ckpt")
    assert list(found) == list(base)
    assert report.replaced == tuple(biases)
    assert all(found[name].tobytes() == {**base, **biases}[name].tobytes() for name in base)
    injected(tmp_path, BITFIT, base, adapter=tmp_path / "bitfit.ckpt", only_delta=True, output=tmp_path / "d.ckpt")
    assert list(read(tmp_path / "d.ckpt")) == list(biases)


def test_training_states_of_an_adapter_are_left_out_and_told(tmp_path: Path) -> None:
    states = {f"adam_v.{name}": array for name, array in mindpet(PAIRS).items()}
    write(tmp_path / "lora.ckpt", {**mindpet(PAIRS), **states, "global_step": np.array([3], np.int32)})
    report = injected(tmp_path, adapter=tmp_path / "lora.ckpt")
    assert {entry.name for entry in report.dropped} == {*states, "global_step"}


def test_missing_and_unused_keys_are_told_at_once(tmp_path: Path) -> None:
    held = mindpet(PAIRS)
    del held["model.layers.0.attention.wq.mindpet_delta_lora_b"]
    held["model.layers.0.attention.wk.mindpet_delta_lora_a"] = random(3, 4, 16)
    held["model.layers.0.attention.wk.mindpet_delta_lora_b"] = random(4, 16, 4)
    write(tmp_path / "lora.ckpt", held)
    message = refusal(tmp_path, 5, adapter=tmp_path / "lora.ckpt")
    assert "nothing for model.layers.0.attention.wq.mindpet_delta_lora_b" in message
    assert "model.layers.0.attention.wk.mindpet_delta_lora_a: LoRA A that has no place in the network" in message
    assert "model.layers.0.attention.wk.mindpet_delta_lora_b: LoRA B that has no place in the network" in message


def test_unused_keys_may_be_allowed(tmp_path: Path) -> None:
    write(tmp_path / "lora.ckpt", {**mindpet(PAIRS), "score.weight": random(0, 2, 16)})
    assert "score.weight: a weight that has no place" in refusal(tmp_path, 5, adapter=tmp_path / "lora.ckpt")
    report = injected(tmp_path, adapter=tmp_path / "lora.ckpt", allow_unused=["score.*"])
    assert [(entry.name, entry.reason) for entry in report.dropped] == [("score.weight", "unused, as allowed")]


def test_another_rank_is_told_by_the_shapes(tmp_path: Path) -> None:
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    message = refusal(tmp_path, 5, {**LORA, "lora_rank": 8, "lora_alpha": 16}, adapter=tmp_path / "lora.ckpt")
    assert "expected [8, 16], as model.layers.0.attention.wq.mindpet_delta_lora_a has, found shape [4, 16]" in message


def test_another_scale_than_the_adapter_was_trained_with_is_refused(tmp_path: Path) -> None:
    write_peft(tmp_path / "peft", peft(PAIRS), lora_alpha=32)
    message = refusal(tmp_path, 5, adapter=tmp_path / "peft")
    assert "a scale of 8" in message
    assert "Set lora_alpha to 32" in message


def test_the_scale_in_a_safetensors_file_counts_as_one_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    split(tmp_path / "lora.ckpt", alpha=32, output=tmp_path / "lora.safetensors")
    message = refusal(tmp_path, 5, adapter=tmp_path / "lora.safetensors")
    assert "metadata pet_surgery.adapter_config: " in message
    assert "a scale of 8" in message


def test_rounding_to_the_networks_type_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    base = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    report = injected(tmp_path, LORA, base, adapter=tmp_path / "lora.ckpt")
    assert any("8 tensors are rounded to the network's type" in warning for warning in report.warnings)
    exact = injected(tmp_path, {**LORA, "param_init_type": "float32"}, base, adapter=tmp_path / "lora.ckpt", force=True)
    assert exact.warnings == ()
    found = read(tmp_path / "out.ckpt")
    assert all(found[name].tobytes() == array.tobytes() for name, array in mindpet(PAIRS).items())


def test_an_adapter_goes_into_a_base_of_hugging_faces(tmp_path: Path) -> None:
    write_peft(tmp_path / "peft", peft(PAIRS))
    report = injected(tmp_path, tmp_path / "peft", hugging_face(WEIGHTS), adapter=tmp_path / "peft")
    found = read(tmp_path / "out.ckpt")
    assert found["model.layers.1.self_attn.v_proj.mindpet_delta_lora_a"].tobytes() == (
        PAIRS["model.layers.1.attention.wv.A"].tobytes()
    )
    config = json.loads((tmp_path / "out.adapter_config.json").read_text())
    assert (config["target_modules"], config["lora_alpha"]) == (["q_proj", "v_proj"], 8)
    assert len(report.added) == 8


def test_values_of_an_adapter_beyond_the_range_of_the_networks_type_are_refused(tmp_path: Path) -> None:
    pairs = {name: array * (1e6 if name.endswith("B") else 1) for name, array in PAIRS.items()}
    write(tmp_path / "lora.ckpt", mindpet(pairs))
    base = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    assert "beyond the range of its type" in refusal(tmp_path, 5, LORA, base, adapter=tmp_path / "lora.ckpt")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_refused_unless_it_is_accepted(tmp_path: Path, value: float) -> None:
    adapter = mindpet(PAIRS)
    name = next(iter(adapter))
    adapter[name] = adapter[name].copy()
    adapter[name].flat[3] = value
    write(tmp_path / "lora.ckpt", adapter)
    text = refusal(tmp_path, 5, LORA, adapter=tmp_path / "lora.ckpt")
    assert f"{name}: expected finite values, found NaN or Inf" in text
    assert "--allow-nonfinite" in text
    injected(tmp_path, adapter=tmp_path / "lora.ckpt", allow_nonfinite=True)
    assert read(tmp_path / "out.ckpt")[name].tobytes() == adapter[name].tobytes()


def test_the_manifest_names_the_adapter_as_that_of_a_merge_does(tmp_path: Path) -> None:
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    injected(tmp_path, adapter=tmp_path / "lora.ckpt")
    merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, output=tmp_path / "merged.ckpt")
    names = [json.loads((tmp_path / f"{stem}.pet-manifest.json").read_text())["inputs"] for stem in ("out", "merged")]
    found = [next(one["fingerprint"] for one in inputs if one["role"] == "adapter") for inputs in names]
    assert found[0] == found[1]
