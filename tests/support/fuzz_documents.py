"""Targets for fuzzing: strategies, configurations, manifests and other documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz_mutators import mutate_json, mutate_wire
from fuzz_target import Target
from merge_cases import hf_folder, llama, save
from strategy_bytes import strategy_bytes, strategy_json

from ckpt_tools.formats import open_checkpoint
from ckpt_tools.layout import Layout, read_strategy
from ckpt_tools.layout.slices import regions_of
from ckpt_tools.layout.strategy_writing import strategy_file
from ckpt_tools.merging.accounting import huggingface_config, quantisation_problem
from ckpt_tools.verifying.manifests import read_manifest
from ckpt_tools.writing.manifest import MANIFEST_NAME, Manifest, ManifestInput, ManifestTensor
from surgery.config import LoraConfig
from surgery.config_files import read_adapter_config
from surgery.documents import read_yaml
from surgery.errors import PetSurgeryError
from surgery.freezing import parse_freeze_rules
from surgery.mindformers_config import parse_run
from surgery.targets import selects
from surgery.ties import tied_names
from surgery.translation import load_name_map
from surgery.tuning import Tuning, parse_tuning, read_tuning

__all__ = ["DOCUMENTS"]

_MOST_DEVICES = 256
_LAYERS = ("model.layers.0.self_attn.q_proj", "lm_head", "model.layers.11.feed_forward.experts.3.w2", "")


def _strategy(folder: Path, data: bytes) -> None:
    """What was read is sound: it is written and read again, and slices are computed of it."""
    path = folder / "strategy.ckpt"
    path.write_bytes(data)
    strategy = read_strategy(path)
    layouts = [layout for stage in strategy.stages for layout in stage.values()]
    assert all(layout.devices == strategy.stage_devices for layout in layouts)
    if strategy.stage_devices <= _MOST_DEVICES and len(layouts) <= _MOST_DEVICES:
        for layout in layouts:
            try:
                regions_of(layout, (16,) * len(layout.tensor_map))
            except PetSurgeryError:  # noqa: PERF203 - each of them has its turn
                continue
    if len(strategy.stages) == 1 and not any(layout.expanded_shape for layout in layouts):
        path.write_bytes(strategy_file(strategy.stages))
        assert read_strategy(path).stages == strategy.stages


_LAYOUTS = {
    "model.w": Layout((2, 4), ((0,), (1,))),
    "model.b": Layout((8,), ((),)),
    "model.e": Layout((2, 2, 2), ((2, 0), (), (1,))),
    "model.o": Layout((2, 4), ((0,), ()), shard_step=4, shard_size=2),
    "model.u": Layout((2, 4), ((1,), ()), split_shape=(10, 6), indices_offset=(0, 10), field=1),
}
_SHARDED = {"model.w": {"dev_matrix": [2, 2, 4], "tensor_map": [2, 1, 0], "tensor_shape": [512, 2, 512]}}


def _protobuf_seeds() -> list[bytes]:
    merged = {f"{stage}-{name}": layout for stage in range(2) for name, layout in _LAYOUTS.items()}
    return [
        strategy_bytes({"w": Layout((1,), ((),))}),
        strategy_bytes(_LAYOUTS, packed=True),
        strategy_bytes(_LAYOUTS),
        strategy_bytes(merged),
        strategy_file([_LAYOUTS, _LAYOUTS]),
    ]


def _json_seeds() -> list[bytes]:
    others = ({"weight_map": {}}, {"server_list": []}, {"parallel_layout_item": _SHARDED})
    return [strategy_json(_LAYOUTS), *(json.dumps(document).encode() for document in others)]


def _adapter_config(folder: Path, data: bytes) -> None:
    """A configuration as pet-merge reads it, and as pet-inject does."""
    path = folder / "adapter_config.json"
    path.write_bytes(data)
    _read_each(lambda: _use_config(read_adapter_config(path)), lambda: _use_tuning(read_tuning(path)))


def _run_yaml(folder: Path, data: bytes) -> None:
    """The same of a run's YAML, and its rules on freezing; parsed once, which takes the most time."""
    path = folder / "run.yaml"
    path.write_bytes(data)
    values = read_yaml(path)
    freeze = values.get("freeze")
    _read_each(
        lambda: _use_config(parse_run(values, "run.yaml")),
        lambda: _use_tuning(parse_tuning(values)),
        lambda: parse_freeze_rules(freeze if isinstance(freeze, dict) else {}),
    )


def _read_each(*readers: Callable[[], object]) -> None:
    """Let each reader have its turn, and then raise the last refusal."""
    refusal: PetSurgeryError | None = None
    for read in readers:
        try:
            read()
        except PetSurgeryError as error:  # noqa: PERF203 - each of them has its turn
            refusal = error
    if refusal is not None:
        raise refusal


def _use_config(config: LoraConfig) -> None:
    for layer in _LAYERS:
        selects(config, layer)
        config.saves_module(layer)
        try:
            config.scaling(layer, 8)
        except PetSurgeryError:
            continue


def _use_tuning(tuning: Tuning) -> None:
    tuning.param_init_type()
    tuning.network_shape()


_PEFT: dict[str, object] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"^model.layers.0.self_attn.q_proj": 4},
    "alpha_pattern": {"v_proj": 32},
    "modules_to_save": ["lm_head"],
    "layers_to_transform": [0, 1],
    "layers_pattern": "layers",
    "exclude_modules": ".*w2",
    "use_rslora": True,
    "lora_dropout": 0.0,
    "init_lora_weights": True,
    "bias": "none",
}
_BY_MINDFORMERS = {
    "base_model_name_or_path": "none",
    "bias": "none",
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.01,
    "peft_type": "LORA",
    "r": 8,
    "target_modules": [".*wq", ".*wv"],
    "task_type": "CAUSAL_LM",
}
_SECTION = {"pet_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ".*w[qv]"}
_SECTIONS = (
    _SECTION,
    {"pet_type": "ptuning2", "pre_seq_len": 16, "projection_dim": 8, "dropout_prob": 0.1},
    {"pet_type": "prefixtuning", "prefix_token_num": 8, "mid_dim": 16},
    {"pet_type": "adapter", "bottleneck_size": 8, "non_linearity": "gelu"},
    {"pet_type": "low_rank_adapter", "low_rank_size": 8, "low_rank_rank": 1},
    {"pet_type": "bitfit"},
)
_NETWORK = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "n_kv_heads": 2, "param_init_type": "float16"}
_RUNS: tuple[dict[str, object], ...] = (
    *({"model": {"model_config": {**_NETWORK, "pet_config": section}}} for section in _SECTIONS),
    {"model": {"arch": {"pet": {"pet_type": "lora", "pet_config": {"lora_rank": 8, "reg_rules": ".*dense*"}}}}},
    {
        "lora_config": {
            "target_modules": "linear_(qkv|proj)$",
            "exclude_layers": "mtp",
            "lora_rank": 8,
            "lora_alpha": 16,
        }
    },
    {"pet_type": "lora", "pet_config": {"lora_rank": 8, "lora_alpha": 16}},
    _SECTION,
)


def _config_seeds() -> list[bytes]:
    manifest = {"format": "mindformers_pynative_lora_adapter_v1", "lora_config": {"lora_rank": 4, "lora_alpha": 8}}
    own = {**_BY_MINDFORMERS, "pet_surgery": {"base_fingerprint": "pet-fp1:0", "pet_config": _SECTION}}
    return [json.dumps(document).encode() for document in (_PEFT, _BY_MINDFORMERS, manifest, own, *_RUNS)]


_YAML = (
    b"freeze:\n  include: ['*']\n  exclude:\n    - '*lora*'\npet_config: {pet_type: lora, lora_rank: 8}\n",
    b"model:\n  model_config: &a\n    pet_config: !!map\n      r: !!int 8\n      lora_alpha: !!float 1\n  b: *a",
    b"lora_config:\n  <<: {lora_rank: 010}\n  lora_alpha: 0x10\n  target_modules: |-\n    .*wq\n  freeze: !!set {a}\n",
    b"? !!str 1\n: !!omap [a: 1]\nx: !!timestamp 2001-12-14t21:59:43.10-05:00\ny: !!binary aGk=\nz: !!bool yes\n",
    b"%YAML 1.1\n--- \n'a': \"\\u263a\"\n...\n",
)


def _yaml_seeds() -> list[bytes]:
    return [*_YAML, *(json.dumps(document).encode() for document in _RUNS)]


def _name_map(folder: Path, data: bytes) -> None:
    (folder / "names.json").write_bytes(data)
    assert all(load_name_map(folder / "names.json").values())


def _manifest(folder: Path, data: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(data)
    found = read_manifest(folder)
    assert found.digests is None or set(found.digests) == set(found.tensors)


def _manifest_seeds() -> list[bytes]:
    tensors = (ManifestTensor("w", "bf16", (2, 3)), ManifestTensor("b", "fp32", ()))
    inputs = (ManifestInput("base", "base.ckpt", "pet-fp1:0"), ManifestInput("adapter", "lora", "blake3:0", (2.0,)))
    one = Manifest("merge", inputs, "safetensors", ("model.safetensors",), tensors, ("config.json",))
    other = Manifest("transform", inputs, "ckpt", ("x.ckpt",), tensors, has_digests=False)
    return [one.to_bytes(), other.to_bytes()]


def _model_config(folder: Path, data: bytes) -> None:
    """The `config.json` of a base: what of it a merge asks."""
    (folder / "config.json").write_bytes(data)
    checkpoint = open_checkpoint(folder)
    config = huggingface_config(checkpoint)
    quantisation_problem(checkpoint, config)
    for name in checkpoint.tensors:
        tied_names(name, checkpoint.tensors, config)


def _prepare_model(folder: Path) -> None:
    save(folder / "model.safetensors", {"model.embed_tokens.weight": llama()["lm_head.weight"]})


def _model_config_seeds() -> list[bytes]:
    with TemporaryDirectory() as scratch:
        config = (hf_folder(Path(scratch, "base")) / "config.json").read_bytes()
    tied = {"architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": False, "text_config": {}}
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    return [config, json.dumps(tied).encode(), json.dumps(quantised).encode()]


_CORRUPT, _MISFIT = frozenset({4}), frozenset({4, 5})
_CONFIG_WORDS = (
    *_PEFT,
    "lora_rank",
    "pet_config",
    "model_config",
    "freeze_include",
    "exclude_layers",
    "(?i)",
    "(?P<index>",
)
_YAML_WORDS = (
    "!!bool ",
    "!!int ",
    "!!float ",
    "!!timestamp ",
    "!!python/object:",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "- ",
    "|-\n",
)

DOCUMENTS: Mapping[str, Target] = {
    "adapter_config": Target(_adapter_config, _config_seeds, _MISFIT, mutate_json, _CONFIG_WORDS),
    "manifest": Target(_manifest, _manifest_seeds, _CORRUPT, mutate_json, ("pet-manifest-1", "digest", "shape")),
    "model_config": Target(
        _model_config, _model_config_seeds, _CORRUPT, mutate_json, ("architectures", "text_config"), _prepare_model
    ),
    "name_map": Target(_name_map, lambda: [b'{"a": "b", "c": "d"}'], _CORRUPT, mutate_json),
    "run_yaml": Target(_run_yaml, _yaml_seeds, _MISFIT, mutate_json, (*_CONFIG_WORDS, *_YAML_WORDS)),
    "strategy_json": Target(_strategy, _json_seeds, _MISFIT, mutate_json, ("dev_matrix", "tensor_map", "tensor_shape")),
    "strategy_protobuf": Target(_strategy, _protobuf_seeds, _MISFIT, mutate_wire),
}
