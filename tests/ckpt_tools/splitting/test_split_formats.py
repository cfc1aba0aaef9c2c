"""The forms that an adapter gets: names and configuration of PEFT, MindFormers and SLoRA, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merge_cases import PAIRS, contents, hugging_face, hugging_face_name, random, read, save, write_peft
from rank_folders import assert_same_arrays, read_arrays
from split_cases import BASE, LORA, OTHERS, combined, refusal

from ckpt_tools import merge, open_checkpoint, split
from ckpt_tools.splitting.adapter_output import CONFIG_FILE

PEFT_NAMES = {
    name: f"base_model.model.{hugging_face_name(name.rpartition('.')[0] + '.weight').removesuffix('.weight')}.lora_"
    f"{'A' if name.endswith('_a') else 'B'}.weight"
    for name in LORA["mindpet"]
}


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / CONFIG_FILE).read_text())


@pytest.mark.parametrize("family", LORA)
@pytest.mark.parametrize("alpha", [8, 2.5])
def test_every_family_becomes_a_peft_folder(tmp_path: Path, family: str, alpha: float) -> None:
    split(combined(tmp_path, LORA[family]), alpha=alpha, format="peft", output=tmp_path / "out")
    expected = {PEFT_NAMES[name]: array for name, array in LORA["mindpet"].items()}
    assert_same_arrays(read_arrays(tmp_path / "out" / "adapter_model.safetensors"), expected)
    config = config_of(tmp_path / "out")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, alpha)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert open_checkpoint(tmp_path / "out").metadata["format"] == "pt"


@pytest.mark.parametrize("form", ["keep", "peft", "mindformers", "ckpt", "safetensors"])
@pytest.mark.parametrize("family", LORA)
def test_whatever_the_form_merging_gives_the_same(tmp_path: Path, family: str, form: str) -> None:
    """The base has the names that the adapter's layers have."""
    split(combined(tmp_path, LORA[family]), alpha=8, format=form, output=tmp_path / "out")
    save(tmp_path / "base.ckpt", BASE)
    merge(combined(tmp_path, LORA[family], "again.ckpt"), alpha=8, output=tmp_path / "expected.ckpt")
    merge(tmp_path / "base.ckpt", tmp_path / "out", output=tmp_path / "merged.ckpt")
    assert read(tmp_path / "merged.ckpt").keys() == BASE.keys()
    assert (tmp_path / "merged.ckpt").read_bytes() == (tmp_path / "expected.ckpt").read_bytes()


def test_a_single_safetensors_file_carries_its_configuration(tmp_path: Path) -> None:
    split(combined(tmp_path, LORA["mindpet"]), alpha=8, output=tmp_path / "lora.safetensors")
    assert not (tmp_path / CONFIG_FILE).exists()
    save(tmp_path / "base.ckpt", BASE)
    report = merge(tmp_path / "base.ckpt", tmp_path / "lora.safetensors", output=tmp_path / "merged.ckpt")
    assert report.weights[0].adapters[0].alpha == 8
    assert "metadata pet_surgery.adapter_config" in report.adapters[0].config


@pytest.mark.parametrize("form", ["peft", "ckpt"])
def test_the_configuration_in_a_single_safetensors_file_goes_along_into_another_form(tmp_path: Path, form: str) -> None:
    split(combined(tmp_path, LORA["mindpet"]), alpha=8, output=tmp_path / "lora.safetensors")
    split(tmp_path / "lora.safetensors", format=form, output=tmp_path / "out")
    assert config_of(tmp_path / "out")["lora_alpha"] == 8


def test_a_single_ckpt_has_its_configuration_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", BASE)
    source = combined(tmp_path, LORA["mindpet"])
    report = split(source, alpha=8, output=tmp_path / "lora.ckpt")
    assert report.files == ("lora.ckpt", "lora.adapter_config.json")
    merged = merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", output=tmp_path / "merged.ckpt")
    assert merged.weights[0].adapters[0].alpha == 8
    (tmp_path / "lora.ckpt").unlink()
    assert "lora.adapter_config.json" in refusal(tmp_path, 8, source, alpha=16, output=tmp_path / "lora.ckpt")
    split(source, alpha=16, output=tmp_path / "lora.ckpt", force=True)
    assert json.loads((tmp_path / "lora.adapter_config.json").read_text())["lora_alpha"] == 16


def test_peft_to_mindformers_and_back_is_the_identity(tmp_path: Path) -> None:
    pairs = {PEFT_NAMES[name]: array for name, array in LORA["mindpet"].items()}
    write_peft(tmp_path / "peft", pairs, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    split(tmp_path / "peft", format="mindformers", output=tmp_path / "ms")
    assert_same_arrays(read_arrays(tmp_path / "ms" / "adapter_model.safetensors"), LORA["mindpet"])
    split(tmp_path / "ms", format="peft", output=tmp_path / "back")
    assert_same_arrays(read_arrays(tmp_path / "back" / "adapter_model.safetensors"), pairs)
    first, back = config_of(tmp_path / "peft"), config_of(tmp_path / "back")
    for key in ("peft_type", "r", "lora_alpha", "target_modules"):
        assert back[key] == first[key]


def test_modules_that_peft_saved_whole_go_along_both_ways(tmp_path: Path) -> None:
    pairs = {PEFT_NAMES[name]: array for name, array in LORA["mindpet"].items()}
    pairs["base_model.model.lm_head.weight"] = random(7, 40, 16)
    write_peft(
        tmp_path / "peft", pairs, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]
    )
    split(tmp_path / "peft", format="mindformers", output=tmp_path / "ms")
    assert "lm_head.weight" in read_arrays(tmp_path / "ms" / "adapter_model.safetensors")
    split(tmp_path / "ms", format="peft", output=tmp_path / "back")
    assert_same_arrays(read_arrays(tmp_path / "back" / "adapter_model.safetensors"), pairs)
    assert config_of(tmp_path / "back")["modules_to_save"] == ["lm_head"]


def test_biases_of_adapted_layers_that_peft_trained_go_along_both_ways(tmp_path: Path) -> None:
    pairs = {PEFT_NAMES[name]: array for name, array in LORA["mindpet"].items()}
    pairs["base_model.model.model.layers.0.self_attn.q_proj.bias"] = random(7, 16)
    write_peft(tmp_path / "peft", pairs, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], bias="lora_only")
    split(tmp_path / "peft", format="mindformers", output=tmp_path / "ms")
    report = split(tmp_path / "ms", format="peft", output=tmp_path / "back")
    assert_same_arrays(read_arrays(tmp_path / "back" / "adapter_model.safetensors"), pairs)
    assert report.left == ()
    text = refusal(tmp_path, 5, tmp_path / "ms", format="slora", output=tmp_path / "served")
    assert "expected A and B alone, found magnitudes, biases or modules" in text
    # With the layer's weight it is the base's own, whether LoRA is beside it or not.
    bias = "model.layers.0.attention.wq.bias"
    save(tmp_path / "whole.ckpt", {**BASE, **LORA["mindpet"], bias: random(7, 16)})
    assert bias in split(tmp_path / "whole.ckpt", alpha=8, output=tmp_path / "delta").left


def test_slora_has_a_table_and_a_folder_for_the_adapter(tmp_path: Path) -> None:
    split(combined(tmp_path, LORA["mindpet"]), alpha=8, format="slora", output=tmp_path / "served")
    table = json.loads((tmp_path / "served" / "lora_adapter.json").read_text())
    assert table == {"served": str(tmp_path / "served" / "served")}
    folder = Path(table["served"])
    assert_same_arrays(read_arrays(folder / "adapter_model.ckpt"), LORA["pynative"])
    config = config_of(folder)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["wq", "wv"])
    merge(combined(tmp_path, LORA["mindpet"]), alpha=8, output=tmp_path / "expected.ckpt")
    save(tmp_path / "base.ckpt", BASE)
    merge(tmp_path / "base.ckpt", folder, output=tmp_path / "merged.ckpt")
    assert (tmp_path / "merged.ckpt").read_bytes() == (tmp_path / "expected.ckpt").read_bytes()


def test_a_folder_for_slora_replaces_an_earlier_one_and_no_other_folder(tmp_path: Path) -> None:
    source = combined(tmp_path, LORA["mindpet"])
    split(source, alpha=8, format="slora", output=tmp_path / "served")
    split(source, alpha=16, format="slora", output=tmp_path / "served", force=True)
    assert config_of(tmp_path / "served" / "served")["lora_alpha"] == 16
    (tmp_path / "served" / "notes").mkdir()
    assert "notes" in refusal(tmp_path, 8, source, alpha=16, format="slora", output=tmp_path / "served", force=True)
    (tmp_path / "served" / "notes").rmdir()
    (tmp_path / "served" / "served" / "deep").mkdir()
    assert "served/deep" in refusal(
        tmp_path, 8, source, alpha=16, format="slora", output=tmp_path / "served", force=True
    )


def test_an_alpha_that_is_given_replaces_alpha_alone(tmp_path: Path) -> None:
    pairs = {PEFT_NAMES[name]: array for name, array in LORA["mindpet"].items()}
    given = {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "base_model_name_or_path": "llama"}
    write_peft(tmp_path / "peft", pairs, r=4, lora_alpha=8, **given)
    config = split(tmp_path / "peft", alpha=12, output=tmp_path / "out").config
    assert config is not None
    assert (config["lora_alpha"], config["use_rslora"], config["base_model_name_or_path"]) == (12, True, "llama")


def test_a_configuration_of_patterns_is_kept_layer_by_layer(tmp_path: Path) -> None:
    pairs = {PEFT_NAMES[name]: array for name, array in LORA["mindpet"].items()}
    patterns = {"alpha_pattern": {"layers.1.self_attn.q_proj": 32}, "use_rslora": True}
    write_peft(tmp_path / "peft", pairs, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **patterns)
    split(tmp_path / "peft", format="mindformers", output=tmp_path / "ms")
    save(tmp_path / "hf.safetensors", hugging_face(BASE), metadata={"format": "pt"})
    save(tmp_path / "base.ckpt", BASE)
    expected = merge(tmp_path / "hf.safetensors", tmp_path / "peft", output=tmp_path / "one.safetensors")
    found = merge(tmp_path / "base.ckpt", tmp_path / "ms", output=tmp_path / "other.ckpt")
    assert [[use.scaling for use in weight.adapters] for weight in found.weights] == [
        [use.scaling for use in weight.adapters] for weight in expected.weights
    ]
    assert {use.scaling for weight in found.weights for use in weight.adapters} == {8 / 2, 32 / 2}


def test_embeddings_and_experts_of_pynative_mode_are_merged_by_the_configuration_that_goes_with_them(
    tmp_path: Path,
) -> None:
    experts, embedding = "model.layers.0.mlp.experts.weight1", "model.tok_embeddings"
    delta = {
        **LORA["pynative"],
        f"{experts}_lora_a": random(1, 2, 16, 4),
        f"{experts}_lora_b": random(2, 2, 4, 24),
        f"{embedding}.lora_a": random(3, 4, 40),
        f"{embedding}.lora_b": random(4, 16, 4),
    }
    base = {**BASE, experts: random(5, 2, 16, 24)}
    save(tmp_path / "base.ckpt", base)
    save(tmp_path / "tuned.ckpt", base | delta)
    split(tmp_path / "tuned.ckpt", alpha=8, output=tmp_path / "adapter")
    report = merge(tmp_path / "base.ckpt", tmp_path / "adapter", output=tmp_path / "merged.ckpt")
    folded = {weight.name for weight in report.weights}
    assert {experts, f"{embedding}.embedding_weight"} < folded
    assert len(folded) == len(delta) // 2


def test_names_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(
        json.dumps(
            {f"model.layers.{n}.attention.{c}.weight": f"h.{n}.{c}.weight" for n in range(2) for c in ("wq", "wv")}
        )
    )
    report = split(
        combined(tmp_path, LORA["mindpet"]),
        alpha=8,
        names=str(tmp_path / "names.json"),
        format="peft",
        output=tmp_path / "out",
    )
    assert report.parameters[0].name == "base_model.model.h.0.wq.lora_A.weight"
    split(combined(tmp_path, LORA["mindpet"]), alpha=8, names="hf", output=tmp_path / "hf.ckpt")
    assert "model.layers.0.self_attn.q_proj.mindpet_delta_lora_a" in read(tmp_path / "hf.ckpt")


def test_networks_whose_names_nobody_knows_keep_them_unless_asked(tmp_path: Path) -> None:
    delta = {
        "blocks.0.dense.mindpet_delta_lora_a": random(1, 4, 16),
        "blocks.0.dense.mindpet_delta_lora_b": random(2, 16, 4),
    }
    save(tmp_path / "tuned.ckpt", delta)
    split(tmp_path / "tuned.ckpt", alpha=8, format="peft", output=tmp_path / "out")
    assert "base_model.model.blocks.0.dense.lora_A.weight" in read_arrays(
        tmp_path / "out" / "adapter_model.safetensors"
    )
    text = refusal(tmp_path, 5, tmp_path / "tuned.ckpt", alpha=8, format="peft", names="hf", output=tmp_path / "other")
    assert "Give a JSON file" in text


@pytest.mark.parametrize(
    ("delta", "form", "says"),
    [
        (LORA["mindpet"], "peft", "no alpha, in none of these places: --alpha and --config"),
        (LORA["mindpet"], "slora", "no alpha"),
        (OTHERS["ptuning2"], "peft", "which is p-tuning v2"),
        (OTHERS["adapter"], "slora", "which is bottleneck adapter"),
        (
            {"model.layers.0.mlp.experts.weight1_lora_a": np.ones((2, 16, 4), np.float32)}
            | {"model.layers.0.mlp.experts.weight1_lora_b": np.ones((2, 4, 16), np.float32)},
            "peft",
            "which is expert LoRA A",
        ),
        (
            {"model.layers.0.attention.w_qkv.mindpet_delta_lora_a": np.ones((4, 16), np.float32)}
            | {"model.layers.0.attention.w_qkv.mindpet_delta_lora_b": np.ones((48, 4), np.float32)},
            "peft",
            "the fused rows of q_proj, k_proj, v_proj",
        ),
    ],
    ids=["no alpha", "no alpha for slora", "ptuning2", "bottleneck", "experts", "fused"],
)
def test_what_a_form_cannot_hold_is_refused(tmp_path: Path, delta: dict[str, np.ndarray], form: str, says: str) -> None:
    assert says in refusal(tmp_path, 5, combined(tmp_path, delta), format=form)


def test_without_an_alpha_the_parameters_are_exported_with_a_warning(tmp_path: Path) -> None:
    report = split(combined(tmp_path, LORA["mindpet"]), output=tmp_path / "out")
    assert report.config is None
    assert list(contents(tmp_path / "out")) == ["adapter_model.ckpt", "pet-manifest.json"]
    assert "no alpha is known" in report.warnings[0]


def test_alpha_comes_from_the_runs_yaml_or_from_beside_the_source(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {model_config: {pet_config: {pet_type: lora, lora_rank: 4, lora_alpha: 12}}}"
    )
    source = combined(tmp_path, LORA["mindpet"])
    report = split(source, config=tmp_path / "run.yaml", output=tmp_path / "one")
    assert report.config is not None
    assert report.config["lora_alpha"] == 12
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config_of(tmp_path / "one")))
    report = split(source, output=tmp_path / "other")
    assert report.config is not None
    assert report.config["lora_alpha"] == 12
    assert PAIRS
