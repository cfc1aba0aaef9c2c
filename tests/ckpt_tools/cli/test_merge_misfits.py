"""Inputs that are sound, each by itself, and do not belong together: exit 5, all reasons at once, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from commands import Command
from merge_cases import (
    HIDDEN,
    RANK,
    TARGETS,
    VOCABULARY,
    Arrays,
    Update,
    assert_all_merged,
    assert_merged,
    factors,
    hugging_face,
    llama,
    mindpet,
    peft,
    random,
    read,
    save,
    tree,
    updates,
    write_folder,
    write_peft,
)

ALPHA = ("--alpha", "8")
A, B = "model.layers.0.attention.wq.mindpet_delta_lora_a", "model.layers.0.attention.wq.mindpet_delta_lora_b"


def refusal(command: Command, folder: Path, *arguments: str) -> list[str]:
    """The messages of a merge that does not fit, once it is sure that it touched and left nothing."""
    before = tree(folder)
    code, out, err = command(*arguments)
    assert (code, out) == (5, ""), err
    assert tree(folder) == before
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return lines


def refused_adapter(command: Command, folder: Path, lora: Arrays) -> list[str]:
    save(folder / "lora.ckpt", lora)
    return refusal(command, folder, "base.ckpt", "lora.ckpt", *ALPHA)


def test_49_a_without_b_and_b_without_a(command: Command, tmp_path: Path) -> None:
    pairs = mindpet(factors())
    del pairs[B]
    del pairs["model.layers.1.attention.wv.mindpet_delta_lora_a"]
    lines = refused_adapter(command, tmp_path, pairs)
    assert len(lines) == 2
    assert f"{A}: " in lines[0]
    assert "no B for layer model.layers.0.attention.wq" in lines[0]
    assert "no A for layer model.layers.1.attention.wv" in lines[1]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((RANK, HIDDEN + 1), (HIDDEN, RANK), "shape (16, 16) in the base"),
        ((RANK, HIDDEN), (HIDDEN - 2, RANK), "shape (16, 16) in the base"),
        ((RANK, HIDDEN), (HIDDEN, RANK + 1), "The ranks differ"),
        ((HIDDEN, RANK), (RANK, HIDDEN), "look transposed: write them transposed"),
        ((HIDDEN, RANK), (HIDDEN, RANK), "A looks transposed: write it transposed"),
        ((RANK, HIDDEN), (RANK, HIDDEN), "B looks transposed: write it transposed"),
        ((RANK, HIDDEN // 2), (HIDDEN, RANK), "a slice of a distributed run"),
        ((RANK,), (HIDDEN,), "matrices with elements"),
        ((0, HIDDEN), (HIDDEN, 0), "matrices with elements"),
        ((2, RANK, HIDDEN), (2, HIDDEN, RANK), "stacked"),
    ],
)
def test_50_shapes_that_do_not_fit(
    command: Command, tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...], message: str
) -> None:
    lines = refused_adapter(command, tmp_path, {A: random(0, *a), B: random(1, *b)})
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "alpha in none of these places"),
        (("--alpha", "0"), "--alpha: expected a finite number other than 0, found 0."),
        (("--alpha", "nan"), "found nan"),
        (("--alpha", "inf"), "found inf"),
        (("--scaling", "0"), "--scaling"),
    ],
)
def test_51_alpha_absent_0_or_not_finite(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    lines = refusal(command, tmp_path, "base.ckpt", "lora.ckpt", *arguments)
    assert len(lines) == 1, "one problem, not one for each layer"
    assert message in lines[0]


@pytest.mark.parametrize(
    ("alpha", "message"), [("0", "alpha 0"), ("NaN", "alpha nan"), ("null", "alpha in none of these places")]
)
def test_51_alpha_0_not_finite_or_null_in_the_configuration(
    command: Command, tmp_path: Path, alpha: str, message: str
) -> None:
    (tmp_path / "run.json").write_text(f'{{"pet_config": {{"pet_type": "lora", "lora_alpha": {alpha}}}}}')
    lines = refusal(command, tmp_path, "base.ckpt", "lora.ckpt", "--config", "run.json")
    assert message in lines[0]


def test_52_an_adapter_of_a_base_with_other_names(command: Command, tmp_path: Path) -> None:
    pairs = {
        f"transformer.h.{i}.attn.{half}": random(i, *shape)
        for i in range(3)
        for half, shape in (("lora_a", (RANK, HIDDEN)), ("lora_b", (HIDDEN, RANK)))
    }
    lines = refused_adapter(command, tmp_path, pairs)
    assert len(lines) == 3
    assert all("a weight of the base for every key of the adapter" in line for line in lines)


def test_52_an_adapter_of_a_base_with_more_layers(command: Command, tmp_path: Path) -> None:
    lines = refused_adapter(command, tmp_path, mindpet(factors([*TARGETS, "model.layers.2.attention.wq"])))
    assert len(lines) == 1
    assert "no model.layers.2.attention.wq.weight in the base" in lines[0]
    assert "Near names: model.layers." in lines[0]


def test_52_an_adapter_of_a_base_with_other_shapes(command: Command, tmp_path: Path) -> None:
    wide = {name: np.pad(array, [(0, 8 * (n == HIDDEN)) for n in array.shape]) for name, array in factors().items()}
    lines = refused_adapter(command, tmp_path, mindpet(wide))
    assert len(lines) == len(TARGETS)
    assert all("The adapter was trained on another base" in line for line in lines)


@pytest.mark.parametrize(
    "extra",
    [
        {"model.layers.0.attention.wq.qweight": np.zeros((2, 16), np.int32)},
        {"model.layers.0.attention.wq.weight.absmax": np.zeros(4, np.float32)},
        {"model.layers.0.attention.wq.weight.quant_state.bitsandbytes__nf4": np.zeros(9, np.uint8)},
        {"model.layers.0.attention.wq.SCB": np.zeros(16, np.float32)},
        {"model.layers.0.attention.wq.weight_scale_inv": np.zeros(1, np.float32)},
    ],
)
def test_53_a_base_quantised_by_its_names(command: Command, tmp_path: Path, extra: Arrays) -> None:
    save(tmp_path / "base.ckpt", {**llama(), **extra})
    lines = refusal(command, tmp_path, "base.ckpt", "lora.ckpt", *ALPHA)
    assert "a quantised base" in lines[0]
    assert "quantise the result again" in lines[0]


def test_53_a_base_quantised_by_its_types(command: Command, tmp_path: Path) -> None:
    base = llama()
    base["model.layers.0.attention.wq.weight"] = np.zeros((HIDDEN, HIDDEN), np.int8)
    save(tmp_path / "base.ckpt", base)
    lines = refusal(command, tmp_path, "base.ckpt", "lora.ckpt", *ALPHA)
    assert len(lines) == 1
    assert "elements of type int8 in the base" in lines[0]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("base", [("base.ckpt",), ("--adapters-only",)])
def test_53_an_adapter_of_codes_whose_values_depend_on_scales(
    command: Command, tmp_path: Path, dtype: type, base: tuple[str, ...]
) -> None:
    pairs = mindpet(factors())
    save(tmp_path / "lora.ckpt", {**pairs, B: pairs[B].astype(dtype)})
    (line,) = refusal(command, tmp_path, *base, "lora.ckpt", *ALPHA)
    assert f"lora.ckpt, {B}: expected floating-point matrices, found elements of type" in line
    assert "multiplied with their scales" in line


def test_53_a_base_quantised_by_its_configuration(command: Command, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", hugging_face(llama()))
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    lines = refusal(command, tmp_path, "base", "lora.ckpt", *ALPHA)
    assert "a base quantised with gptq" in lines[0]


@pytest.mark.parametrize("where", ["adapter", "base", "result", "cast"])
def test_54_nan_inf_and_overflow_with_all_names(command: Command, tmp_path: Path, where: str) -> None:
    base, pairs, options = llama("fp16" if where == "result" else "fp32"), mindpet(factors()), []
    if where == "adapter":
        for array in pairs.values():
            array[1, 1] = np.inf
    elif where == "base":
        for target in TARGETS:
            base[f"{target}.weight"][1, 1] = np.nan
    elif where == "result":
        for name, array in pairs.items():
            array[0] = 900 if name.endswith("_b") else 100
    else:
        base["lm_head.weight"][0, 0] = 1e6
        options = ["--dtype", "fp16"]
    save(tmp_path / "base.ckpt", base)
    save(tmp_path / "lora.ckpt", pairs)
    lines = refusal(command, tmp_path, "base.ckpt", "lora.ckpt", *ALPHA, *options)
    count = {"adapter": len(pairs), "base": len(TARGETS), "result": len(TARGETS), "cast": 1}
    assert len(lines) == count[where]
    assert all("--allow-nonfinite" in line for line in lines)
    code, _, _ = command("base.ckpt", "lora.ckpt", *ALPHA, *options, "--allow-nonfinite", "-o", "out.ckpt")
    assert code == 0


def test_55_two_adapters_on_one_weight_are_summed_and_said(command: Command, tmp_path: Path) -> None:
    other = factors(seed=77)
    save(tmp_path / "other.ckpt", mindpet(other))
    code, out, err = command("base.ckpt", "lora.ckpt", "other.ckpt", "--alpha", "8", "--alpha", "2")
    assert code == 0
    assert err.startswith("warning: 4 weights take several adapters, which are summed")
    assert out.count("\n  adapter ") == 2
    merged, one, two = read(tmp_path / "base-merged.ckpt"), updates(factors(), 2.0), updates(other, 0.5)
    for name, weight in llama().items():
        assert_merged(merged[name], "bf16", weight, *(terms[name] for terms in (one, two) if name in terms))


def test_56_an_adapter_that_matches_nothing(command: Command, tmp_path: Path) -> None:
    lines = refused_adapter(command, tmp_path, {"dense.lora_a": random(0, 2, 8), "dense.lora_b": random(1, 8, 2)})
    assert "no dense.weight in the base" in lines[0]


def test_56_a_file_without_adapter_parameters(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "states.ckpt", {"adam_m.lm_head.weight": random(0, 3), "global_step": np.array(1)})
    lines = refusal(command, tmp_path, "base.ckpt", "states.ckpt", *ALPHA)
    assert "no adapter parameters" in lines[0]
    assert "no adapter parameters" in refusal(command, tmp_path, "base.ckpt", *ALPHA)[0]
    assert "a whole model" in refusal(command, tmp_path, "base.ckpt", "base.ckpt", *ALPHA)[0]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["mindpet_delta_ptuning2_embedding.embedding_table", "mindpet_delta_ptuning2_trans.0.weight"], "P-Tuning v2"),
        (["mindpet_delta_prefixtuning_embedding.embedding_table"], "a prefix"),
        (["model.layers.0.mindpet_delta_adapter_block.mindpet_delta_adapter_down_sampler.weight"], "a bottleneck"),
        (["model.layers.0.mindpet_delta_low_rank_adapter_block.x.weight"], "a low-rank adapter"),
        (["prompt_embeddings"], "a prefix or prompt"),
        (["base_model.model.model.layers.0.self_attn.q_proj.hada_w1_a"], "LoHa"),
        (["base_model.model.model.layers.0.self_attn.k_proj.ia3_l"], "IA3"),
    ],
)
def test_57_what_no_weight_can_hold_is_refused_with_the_reason_and_the_alternative(
    command: Command, tmp_path: Path, names: list[str], reason: str
) -> None:
    lines = refused_adapter(command, tmp_path, {name: random(0, 4, 4) for name in names})
    assert len(lines) == 1, "one problem for a method"
    assert reason in lines[0]
    assert "Load it into a network" in lines[0] or "PEFT" in lines[0]


def test_57_a_configuration_of_another_method_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("pet_config: {pet_type: ptuning2, pre_seq_len: 16}\n")
    lines = refusal(command, tmp_path, "base.ckpt", "lora.ckpt", "--config", "run.yaml")
    assert "it trains a prefix and changes no weight" in lines[0]


TIED = {name: array for name, array in hugging_face(llama("fp32")).items() if name != "lm_head.weight"}


def tied_base(tmp_path: Path, **config: object) -> Path:
    folder = write_folder(tmp_path / "base", TIED, shards=2)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | config))
    return folder


def test_58_an_adapted_head_is_untied_from_its_embedding(command: Command, tmp_path: Path) -> None:
    tied_base(tmp_path, tie_word_embeddings=True)
    a, b = random(0, RANK, HIDDEN), random(1, VOCABULARY, RANK)
    pair = {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
    write_peft(tmp_path / "lora", pair, target_modules=["lm_head"])
    code, _, err = command("base", "lora", "-o", "out")
    assert code == 0, err
    assert "was tied to" in err
    embedding = TIED["model.embed_tokens.weight"]
    expected = {**TIED, "lm_head.weight": embedding}
    assert_all_merged(tmp_path / "out", expected, {"lm_head.weight": Update(b, a, 2.0)})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_58_an_adapted_embedding_leaves_its_head_as_it_was(command: Command, tmp_path: Path) -> None:
    tied_base(tmp_path, tie_word_embeddings=True)
    a, b = random(0, RANK, VOCABULARY), random(1, HIDDEN, RANK)
    key = "base_model.model.model.embed_tokens.lora_embedding_"
    write_peft(tmp_path / "lora", {f"{key}A": a, f"{key}B": b}, target_modules=["embed_tokens"])
    code, _, err = command("base", "lora", "-o", "out")
    assert code == 0, err
    assert "was tied to" in err
    merged = read(tmp_path / "out")
    assert merged["lm_head.weight"].tobytes() == TIED["model.embed_tokens.weight"].tobytes()
    assert_merged(merged["model.embed_tokens.weight"], "fp32", TIED["model.embed_tokens.weight"], Update(a.T, b.T, 2.0))


def test_58_a_head_that_is_missing_and_not_tied_has_no_home(command: Command, tmp_path: Path) -> None:
    tied_base(tmp_path, tie_word_embeddings=False)
    a, b = random(0, RANK, HIDDEN), random(1, VOCABULARY, RANK)
    pair = {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
    write_peft(tmp_path / "lora", pair, target_modules=["lm_head"])
    lines = refusal(command, tmp_path, "base", "lora")
    assert "no lm_head.weight in the base" in lines[0]


def test_58_layers_that_are_not_tied_leave_a_tied_pair_alone(command: Command, tmp_path: Path) -> None:
    tied_base(tmp_path, tie_word_embeddings=True)
    write_peft(tmp_path / "lora", peft(factors()))
    code, _, err = command("base", "lora", "-o", "out")
    assert (code, err) == (0, "")
    assert "lm_head.weight" not in read(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
