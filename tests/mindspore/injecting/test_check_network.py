"""`--check-network`: the network that a run's YAML describes is built, compared with the output and loaded from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore
import pytest
import yaml
from commands import run_here
from networks import MODELS, glm2, llama, llama_config

from ckpt_tools import inject, open_checkpoint, save_checkpoint
from ckpt_tools.cli.inject import inject_command
from ckpt_tools.layout import Layout
from ckpt_tools.layout.strategy_writing import strategy_file
from surgery.errors import UsageError, VerificationError

FLOAT32 = dict.fromkeys(("compute_dtype", "param_init_type", "layernorm_compute_type"), "float32")
_SIZES = {"batch_size": 2, "seq_length": 16, "hidden_size": 64, "num_layers": 1}
_ON_CPU = {"use_flash_attention": False, "fused_rms_norm": False}
LLAMA = {
    **_SIZES,
    **_ON_CPU,
    **FLOAT32,
    "type": "LlamaConfig",
    "vocab_size": 128,
    "num_heads": 4,
    "multiple_of": 32,
    "rotary_dtype": "float32",
    "softmax_compute_type": "float32",
    "use_rope_slice": True,
}
GLM2 = {
    **_SIZES,
    **_ON_CPU,
    **FLOAT32,
    "type": "ChatGLM2Config",
    "padded_vocab_size": 128,
    "ffn_hidden_size": 96,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
}
NETWORKS = {
    "llama": (LLAMA, "LlamaForCausalLM", llama),
    "glm2": (GLM2, "ChatGLM2ForConditionalGeneration", glm2),
}
PETS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 4, "lora_alpha": 8},
    "adapter": {"bottleneck_size": 6},
    "low_rank_adapter": {"reduction_factor": 2, "low_rank_size": 3},
    "ptuning2": {"pre_seq_len": 8, "prefix_projection": True, "projection_dim": 12, "dropout_rate": 0.01},
    "prefixtuning": {"prefix_token_num": 8, "mid_dim": 12, "dropout_rate": 0.05},
}
CASES = [*((name, pet) for name in NETWORKS for pet in ("lora", "adapter", "low_rank_adapter"))]
CASES += [("llama", "ptuning2"), ("llama", "prefixtuning"), ("glm2", "bitfit")]


def write_run(name: str, pet_type: str, **changes: Any) -> str:
    network, arch, _ = NETWORKS[name]
    section = {"pet_type": pet_type, **PETS.get(pet_type, {})}
    if pet_type in ("lora", "adapter", "low_rank_adapter"):
        section["target_modules"] = MODELS[name].rule
    run = {"model": {"model_config": {**network, **changes, "pet_config": section}, "arch": {"type": arch}}}
    Path("run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    return "run.yaml"


def save_base(name: str) -> str:
    mindspore.save_checkpoint(NETWORKS[name][2](), "base.ckpt")
    return "base.ckpt"


@pytest.mark.parametrize(("name", "pet_type"), CASES, ids=["-".join(case) for case in CASES])
def test_the_yamls_network_loads_the_output_strictly(name: str, pet_type: str) -> None:
    report = inject(save_base(name), config=write_run(name, pet_type), output="injected.ckpt", check_network=True)
    assert report.network_checked
    assert not report.warnings


def test_a_delta_alone_is_checked_and_loaded_too() -> None:
    config = write_run("llama", "ptuning2")
    report = inject(save_base("llama"), config=config, output="delta.ckpt", check_network=True, only_delta=True)
    assert report.only_delta
    assert len(open_checkpoint("delta.ckpt").tensors) == len(report.added) == 6


def test_the_older_generations_yaml_is_checked_too() -> None:
    network, arch, _ = NETWORKS["llama"]
    pet_config = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1, "reg_rules": ".*wq|.*wv"}
    section = {"type": arch, "pet": {"pet_type": "lora", "pet_config": pet_config}}
    Path("run.yaml").write_text(yaml.safe_dump({"model": {"model_config": network, "arch": section}}))
    report = inject(save_base("llama"), config="run.yaml", output="injected.ckpt", check_network=True)
    assert report.layers == ("model.layers.0.attention.wq", "model.layers.0.attention.wv")


def test_slices_for_ranks_are_loaded_by_the_strategy_that_lies_beside_them() -> None:
    base = save_base("llama")
    layouts = {
        name: Layout((2, 2), ((0,), ()) if len(one.shape) == 2 else ((),) * len(one.shape))
        for name, one in open_checkpoint(base).tensors.items()
    }
    Path("strategy.ckpt").write_bytes(strategy_file([layouts]))
    config = write_run("llama", "lora")
    for format in ("keep", "iteration"):
        output = f"of-{format}"
        report = inject(
            base, config=config, output=output, dst_strategy="strategy.ckpt", format=format, check_network=True
        )
        assert report.network_checked
        assert report.dst_ranks == 4


def test_another_network_is_told_in_full_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base("llama")
    config = write_run("llama", "lora", num_layers=2, vocab_size=256)
    assert run_here(inject_command, base, "--config", config, "-o", "injected.ckpt", "--check-network") == 6
    message = capsys.readouterr().err
    assert (
        "model.layers.1.attention.wq.weight: expected the same parameters in both, found not in the output" in message
    )
    assert "lm_head.weight: expected [256, 64], as in the network, found shape [128, 64]" in message
    assert not list(Path().glob("injected*"))


def test_another_order_is_told() -> None:
    tensors = dict(open_checkpoint(save_base("llama")).tensors)
    last = tensors.pop("lm_head.weight")
    save_checkpoint("other.ckpt", {"lm_head.weight": last, **tensors})
    with pytest.raises(VerificationError, match="parameter 0"):
        inject("other.ckpt", config=write_run("llama", "lora"), output="injected.ckpt", check_network=True)


def test_a_base_of_another_type_is_cast_when_it_is_loaded_and_that_is_said() -> None:
    base = save_base("llama")
    config = write_run("llama", "lora", param_init_type="float16")
    report = inject(base, config=config, output="injected.ckpt", check_network=True)
    assert {one.dtype for one in report.added} == {"fp16"}
    (warning,) = report.warnings
    assert "weights have another type than in the network" in warning


def test_a_configuration_without_a_network_cannot_be_checked() -> None:
    with pytest.raises(UsageError, match="describes no network"):
        inject(
            save_base("llama"),
            config={"pet_type": "lora", "target_modules": ".*wq"},
            output="injected.ckpt",
            check_network=True,
        )


def test_the_tests_network_is_that_of_the_yaml() -> None:
    ours = llama_config().to_dict()
    assert {key: ours[key] for key in ("hidden_size", "num_layers", "vocab_size")} == {
        key: LLAMA[key] for key in ("hidden_size", "num_layers", "vocab_size")
    }
