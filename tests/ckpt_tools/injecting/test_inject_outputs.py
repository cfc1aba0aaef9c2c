"""What an injection writes: the same bits every time, in every format, and what lies beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inject_cases import ADAPTER, BITFIT, LORA, LOW_RANK, PTUNING2, WEIGHTS, injected, refusal, with_biases
from merge_cases import add_crc, contents, hugging_face, names_of, random, read, write, write_folder

from ckpt_tools import inject, merge, open_checkpoint
from ckpt_tools.fingerprint import fingerprint, target_fingerprint
from surgery.errors import MismatchError

METHODS: dict[str, dict[str, Any]] = {config["pet_type"]: config for config in (LORA, ADAPTER, LOW_RANK, PTUNING2)}


def new_of(path: Path) -> dict[str, np.ndarray]:
    return {name: array for name, array in read(path).items() if "delta" in name}


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_the_base_keeps_its_bytes_and_its_order(tmp_path: Path, config: dict[str, Any]) -> None:
    report = injected(tmp_path, config)
    found = read(tmp_path / "out.ckpt")
    assert [name for name in found if "delta" not in name] == list(WEIGHTS) == list(report.copied)
    assert all(found[name].tobytes() == array.tobytes() for name, array in WEIGHTS.items())
    assert [one.name for one in report.added] == list(new_of(tmp_path / "out.ckpt"))


def test_new_parameters_stand_behind_the_weight_and_the_bias_of_their_layer(tmp_path: Path) -> None:
    injected(tmp_path, LORA, with_biases())
    names = list(read(tmp_path / "out.ckpt"))
    place = names.index("model.layers.0.attention.wq.weight")
    layer = "model.layers.0.attention.wq"
    assert names[place : place + 4] == [
        f"{layer}.{leaf}" for leaf in ("weight", "bias", "mindpet_delta_lora_a", "mindpet_delta_lora_b")
    ]


def test_a_prefix_stands_behind_the_network(tmp_path: Path) -> None:
    injected(tmp_path, PTUNING2)
    names = list(read(tmp_path / "out.ckpt"))
    assert names[: len(WEIGHTS)] == list(WEIGHTS)
    assert names[len(WEIGHTS)] == "mindpet_delta_ptuning2_prefix"
    assert new_of(tmp_path / "out.ckpt")["mindpet_delta_ptuning2_prefix"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_the_same_seed_gives_the_same_bits_whatever_the_threads_and_the_format(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    injected(tmp_path, config, threads=1)
    first = new_of(tmp_path / "out.ckpt")
    for number, options in enumerate(({"threads": 4}, {"max_memory": "256MiB"}, {"only_delta": True})):
        path = tmp_path / f"again-{number}.safetensors"
        injected(tmp_path, config, output=path, **options)
        again = new_of(path)
        assert {name: array.tobytes() for name, array in again.items()} == {
            name: array.tobytes() for name, array in first.items()
        }
    injected(tmp_path, config, output=tmp_path / "other.ckpt", seed=1)
    other = new_of(tmp_path / "other.ckpt")
    assert any(other[name].tobytes() != array.tobytes() for name, array in first.items())


def test_what_begins_as_zero_is_zero_and_a_merge_gives_the_base(tmp_path: Path) -> None:
    injected(tmp_path)
    merge(tmp_path / "out.ckpt", output=tmp_path / "merged.ckpt")
    assert contents(tmp_path / "merged.ckpt") == contents(tmp_path / "base.ckpt")


def test_only_delta_is_what_pet_merge_takes_as_an_adapter(tmp_path: Path) -> None:
    report = injected(tmp_path, LORA, output=tmp_path / "delta", only_delta=True)
    files = ["adapter_config.json", "mindspore_model.ckpt", "trainable_parameters.json"]
    assert names_of(tmp_path / "delta") == sorted([*files, "pet-manifest.json"])
    assert report.copied == ()
    merged = merge(tmp_path / "base.ckpt", tmp_path / "delta", output=tmp_path / "merged.ckpt")
    assert {use.scaling for weight in merged.weights for use in weight.adapters} == {2.0}


def test_the_files_beside_a_single_file_are_called_after_it_and_are_no_other_adapters(tmp_path: Path) -> None:
    report = injected(tmp_path)
    assert report.companions == (
        str(tmp_path / "out.adapter_config.json"),
        str(tmp_path / "out.trainable_parameters.json"),
    )
    merged = merge(tmp_path / "out.ckpt", output=tmp_path / "merged.ckpt")
    assert merged.adapters[0].config == str(tmp_path / "out.adapter_config.json")
    write(tmp_path / "lora.ckpt", new_of(tmp_path / "out.ckpt"))
    with pytest.raises(Exception, match="alpha in none of these places"):
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "guessed.ckpt")


def test_the_lists_of_trained_and_frozen_parameters_are_complete(tmp_path: Path) -> None:
    report = injected(tmp_path)
    lists = json.loads((tmp_path / "out.trainable_parameters.json").read_text())
    found = read(tmp_path / "out.ckpt")
    named = {entry["name"]: entry for key in ("trainable", "frozen") for entry in lists[key]}
    assert set(named) == set(found)
    assert {entry["name"] for entry in lists["trainable"]} == set(new_of(tmp_path / "out.ckpt"))
    assert all(tuple(named[name]["shape"]) == array.shape for name, array in found.items())
    assert all(named[name]["bytes"] == array.nbytes for name, array in found.items())
    assert report.trainable_bytes == lists["trainable_bytes"] == sum(e["bytes"] for e in lists["trainable"])
    assert lists["trainable_elements"] + lists["frozen_elements"] == report.total_elements


def test_globs_of_the_configuration_freeze_and_train_besides(tmp_path: Path) -> None:
    injected(tmp_path, {**LORA, "freeze_exclude": ["*norm*"], "freeze_include": ["*.1.*lora_b"]})
    lists = json.loads((tmp_path / "out.trainable_parameters.json").read_text())
    trained = [entry["name"] for entry in lists["trainable"]]
    assert "model.norm_out.weight" in trained
    assert "model.layers.1.attention.wq.mindpet_delta_lora_b" not in trained
    assert "model.layers.1.attention.wq.mindpet_delta_lora_a" in trained


def test_bitfit_adds_nothing_and_lists_the_biases(tmp_path: Path) -> None:
    report = injected(tmp_path, BITFIT, with_biases())
    assert report.added == ()
    assert contents(tmp_path / "out.ckpt") == contents(tmp_path / "base.ckpt")
    lists = json.loads((tmp_path / "out.trainable_parameters.json").read_text())
    assert [entry["name"] for entry in lists["trainable"]] == [f"model.layers.{n}.attention.wq.bias" for n in range(2)]


def test_bitfit_needs_biases_and_has_no_delta(tmp_path: Path) -> None:
    assert "no parameter of BitFit" in refusal(tmp_path, 5, BITFIT)
    assert "which adds nothing" in refusal(tmp_path, 2, BITFIT, with_biases(), only_delta=True)


def test_a_folder_keeps_its_shards_and_new_parameters_join_their_layers(tmp_path: Path) -> None:
    write_folder(tmp_path / "hf", hugging_face(WEIGHTS))
    (tmp_path / "hf" / "config.json").write_text("{}")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    inject(tmp_path / "hf", config=config, output=tmp_path / "out")
    shards = open_checkpoint(tmp_path / "out").shards
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    for name, shard in shards.items():
        if "delta" in name:
            assert shard == shards[f"{name.rpartition('.')[0]}.weight"]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]


def test_training_states_are_left_out_and_told(tmp_path: Path) -> None:
    name = "model.layers.0.attention.wq.weight"
    base = {**WEIGHTS, f"adam_m.{name}": WEIGHTS[name], "global_step": np.array([7], np.int32)}
    report = injected(tmp_path, LORA, base)
    assert {entry.name: entry.reason for entry in report.dropped} == {
        f"adam_m.{name}": "optimizer state",
        "global_step": "training scalar",
    }
    assert set(read(tmp_path / "out.ckpt")) == {*WEIGHTS, *(one.name for one in report.added)}


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_another_type_is_that_of_all_floating_point_tensors(tmp_path: Path, config: dict[str, Any]) -> None:
    injected(tmp_path, config, dtype="fp16")
    types = {array.dtype for array in read(tmp_path / "out.ckpt").values() if array.dtype != np.int64}
    assert types == {np.dtype(np.float16)}


def test_values_beyond_the_range_of_a_type_are_refused(tmp_path: Path) -> None:
    base = {**WEIGHTS, "model.norm_out.weight": np.full(16, 1e6, np.float32)}
    assert "16 elements beyond the range of fp16" in refusal(tmp_path, 5, LORA, base, dtype="fp16")
    injected(tmp_path, LORA, base, dtype="fp16", allow_nonfinite=True)
    assert np.isinf(read(tmp_path / "out.ckpt")["model.norm_out.weight"]).all()


def test_a_dry_run_tells_all_and_writes_nothing(tmp_path: Path) -> None:
    planned = injected(tmp_path, dry_run=True)
    assert names_of(tmp_path) == ["base.ckpt"]
    done = injected(tmp_path)
    assert (planned.added, planned.bytes_written, planned.layers) == (done.added, done.bytes_written, done.layers)
    assert (tmp_path / "out.ckpt").stat().st_size == done.bytes_written


def test_the_crc_of_a_base_is_checked_on_the_way(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", WEIGHTS)
    add_crc(tmp_path / "base.ckpt")
    report = inject(tmp_path / "base.ckpt", config=LORA, output=tmp_path / "out.ckpt")
    assert report.crc_checked == (str(tmp_path / "base.ckpt"),)
    data = bytearray((tmp_path / "base.ckpt").read_bytes())
    data[-30] ^= 1  # within the last tensor; the trailer has 17 bytes
    (tmp_path / "base.ckpt").write_bytes(data)
    with pytest.raises(Exception, match="CRC"):
        inject(tmp_path / "base.ckpt", config=LORA, output=tmp_path / "damaged.ckpt")
    assert not list(tmp_path.glob("damaged*"))


def test_an_output_that_exists_is_kept_and_so_are_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "out.adapter_config.json").write_text("mine")
    assert "out.adapter_config.json: expected a free path" in refusal(tmp_path, 8)
    injected(tmp_path, force=True)
    assert (tmp_path / "out.adapter_config.json").read_text() != "mine"
    assert "out.ckpt: expected a free path" in refusal(tmp_path, 8)


def test_a_configuration_is_never_replaced_by_the_one_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "out.adapter_config.json").write_text(json.dumps(LORA))
    config = tmp_path / "out.adapter_config.json"
    assert "is an input" in refusal(tmp_path, 2, config, force=True)


def test_the_bases_fingerprint_is_kept_with_the_adapter(tmp_path: Path) -> None:
    report = injected(tmp_path, output=tmp_path / "out.safetensors")
    weights = open_checkpoint(tmp_path / "base.ckpt").tensors
    assert report.base_fingerprint == fingerprint(weights)
    assert open_checkpoint(tmp_path / "out.safetensors").metadata["pet_surgery.base_fingerprint"] == fingerprint(
        weights
    )
    # The second run writes the base anew.
    injected(tmp_path, only_delta=True, output=tmp_path / "delta.safetensors")
    weights = open_checkpoint(tmp_path / "base.ckpt").tensors
    expected = target_fingerprint(weights[f"{layer}.weight"] for layer in report.layers)
    for name in ("out", "delta"):
        config = json.loads((tmp_path / f"{name}.adapter_config.json").read_text())
        assert config["pet_surgery"]["base_fingerprint"] == expected
    assert open_checkpoint(tmp_path / "delta.safetensors").metadata["pet_surgery.base_fingerprint"] == expected


def test_a_network_that_was_cast_is_the_base_of_its_own_adapter(tmp_path: Path) -> None:
    injected(tmp_path, dtype="bf16")
    merge(tmp_path / "out.ckpt", output=tmp_path / "merged.ckpt")
    # The delta alone belongs to the base as it is, whatever its own type.
    injected(tmp_path, dtype="bf16", only_delta=True, output=tmp_path / "delta.ckpt")
    merge(tmp_path / "base.ckpt", tmp_path / "delta.ckpt", output=tmp_path / "folded.ckpt")
    with pytest.raises(MismatchError, match="an adapter of the base"):
        merge(tmp_path / "merged.ckpt", tmp_path / "delta.ckpt", output=tmp_path / "other.ckpt")


def test_what_was_written_beside_an_output_configures_the_next_injection(tmp_path: Path) -> None:
    injected(tmp_path, {**LORA, "exclude_layers": ["0"], "lora_a_init": "xavier_uniform"})
    again = injected(tmp_path, tmp_path / "out.adapter_config.json", output=tmp_path / "again.ckpt")
    assert contents(tmp_path / "again.ckpt") == contents(tmp_path / "out.ckpt")
    assert {layer.split(".")[2] for layer in again.layers} == {"1"}


def test_a_long_prefix_is_warned_of_with_the_reason(tmp_path: Path) -> None:
    report = injected(tmp_path, {**PTUNING2, "pre_seq_len": 61})
    assert any("longer than 60 converges badly" in warning for warning in report.warnings)


def test_a_prefix_for_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, 5, {**PTUNING2, "num_layers": 3})
    assert "num_layers: expected 2, as the base has layers, found 3" in message


def test_a_prefix_without_the_networks_shape_is_refused(tmp_path: Path) -> None:
    config = {key: value for key, value in PTUNING2.items() if key not in ("num_layers", "num_heads", "kv_channels")}
    message = refusal(tmp_path, 5, config)
    assert "no num_layers" in message
    assert "no kv_channels or hidden_size" in message


def test_a_whole_output_has_no_ranks(tmp_path: Path) -> None:
    assert "an output for ranks" in refusal(tmp_path, 2, ranks="0")


@pytest.mark.parametrize("option", [{"dtype": "int8"}, {"format": "gguf"}, {"seed": "x"}, {"adapter_strategy": "s"}])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    refusal(tmp_path, 2, **option)


def test_a_new_parameters_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    base = {**WEIGHTS, "model.layers.0.attention.wq.mindpet_delta_lora_a": random(0, 4, 16)}
    refusal(tmp_path, 5, LORA, base)
