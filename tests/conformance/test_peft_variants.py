"""PEFT adapters off the beaten track: other types, formats, names, kinds of layers, and several at once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from peft_models import DTYPES, NETWORKS, Network, load_adapted, logits, lora, shake, write_adapter, write_base
from peft_reference import assert_rounded, assert_speaks_alike, merged_by_peft, read_folder
from safetensors.torch import load_file, save_file
from torch import nn

from ckpt_tools import merge, open_checkpoint
from surgery.errors import MismatchError

GPT2, LLAMA, BERT = NETWORKS["gpt2"], NETWORKS["llama"], NETWORKS["bert"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA in bfloat16."""
    return write_base(LLAMA, tmp_path_factory.mktemp("llama"), torch.bfloat16)


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """Its adapter, with a head that was trained whole."""
    return write_adapter(LLAMA, base, base.parent / "llama-adapter", _everything(LLAMA))


def _everything(network: Network, **options: Any) -> Any:
    return lora(target_modules=list(network.targets), modules_to_save=["lm_head"], **options)


@pytest.mark.parametrize("adapter_dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", DTYPES)
def test_an_adapter_may_have_any_type_and_the_output_has_the_bases(
    base_dtype: str, adapter_dtype: str, tmp_path: Path
) -> None:
    base = write_base(LLAMA, tmp_path / "base", DTYPES[base_dtype])
    config = _everything(LLAMA, use_dora=True)
    adapter = write_adapter(LLAMA, base, tmp_path / "adapter", config, dtype=DTYPES[adapter_dtype])
    saved = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {DTYPES[adapter_dtype]}

    merge(base, adapter, output=tmp_path / "merged")

    found = read_folder(tmp_path / "merged")
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[base_dtype]}
    assert_rounded(found, read_folder(base), merged_by_peft(load_adapted(LLAMA, base, adapter)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_type_that_is_asked_for_is_that_of_all_tensors_and_of_the_configuration(
    dtype: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    merge(base, adapter, output=tmp_path / "merged", dtype=dtype)
    found = read_folder(tmp_path / "merged")
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[dtype]}
    adapted = load_adapted(LLAMA, base, adapter)
    assert_speaks_alike(LLAMA, tmp_path / "merged", logits(adapted), base)
    assert_rounded(found, read_folder(base), merged_by_peft(adapted))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert model.dtype == DTYPES[dtype]


def test_a_ckpt_has_the_bytes_of_the_safetensors(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, output=tmp_path / "folder")
    merge(base, adapter, output=tmp_path / "merged.ckpt")
    found, expected = open_checkpoint(tmp_path / "merged.ckpt"), open_checkpoint(tmp_path / "folder")
    assert found.format == "ckpt"
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in found.tensors.items():
        assert tensor.read_all().tobytes() == expected.tensors[name].read_all().tobytes(), name


def test_shards_that_are_asked_for_load_as_a_single_file_does(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, output=tmp_path / "merged", max_shard_size="40KB")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 2
    assert_speaks_alike(LLAMA, tmp_path / "merged", logits(load_adapted(LLAMA, base, adapter)), base)


def test_an_adapter_of_another_name_lies_in_a_folder_of_that_name(base: Path, tmp_path: Path) -> None:
    config = lora(target_modules=["q_proj"])
    adapter = write_adapter(LLAMA, base, tmp_path / "adapter", config, adapter_name="spanish")
    assert adapter == tmp_path / "adapter" / "spanish"
    merge(base, adapter, output=tmp_path / "merged")
    assert_speaks_alike(LLAMA, tmp_path / "merged", logits(load_adapted(LLAMA, base, adapter)), base)


def test_an_adapter_file_alone_finds_the_configuration_beside_it(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, output=tmp_path / "folder")
    merge(base, adapter / "adapter_model.safetensors", output=tmp_path / "file")
    files = [tmp_path / kind / "model.safetensors" for kind in ("folder", "file")]
    assert load_file(files[0]).keys() == load_file(files[1]).keys()
    first, second = (load_file(file) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("flag", ["true", "false"])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("gpt2", ["c_attn", "c_proj"]),
        ("gpt2", ["attn.c_proj"]),
        ("llama", ["q_proj", "k_proj"]),
        ("llama", ["q_proj"]),
        ("bert", ["query", "value"]),
    ],
    ids=str,
)
def test_fan_in_fan_out_may_be_wrong_in_the_file(name: str, targets: list[str], flag: str, tmp_path: Path) -> None:
    """PEFT goes by the layer's class, and only warns."""
    network = NETWORKS[name]
    base = write_base(network, tmp_path / "base", torch.float32)
    adapter = write_adapter(network, base, tmp_path / "adapter", lora(target_modules=targets))
    path = adapter / "adapter_config.json"
    text = path.read_text()
    assert '"fan_in_fan_out": ' in text
    for old in ("true", "false"):
        text = text.replace(f'"fan_in_fan_out": {old}', f'"fan_in_fan_out": {flag}')
    path.write_text(text)

    merge(base, adapter, output=tmp_path / "merged")

    expected = merged_by_peft(load_adapted(network, base, adapter))
    assert assert_rounded(read_folder(tmp_path / "merged"), read_folder(base), expected) > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_adapters_are_summed_as_pefts_linear_combination(dtype: str, tmp_path: Path) -> None:
    base = write_base(GPT2, tmp_path / "base", DTYPES[dtype])
    first = write_adapter(GPT2, base, tmp_path / "first", lora(target_modules=["c_attn", "c_proj"]))
    second = write_adapter(
        GPT2, base, tmp_path / "second", lora(r=7, target_modules=["c_proj", "c_fc"], use_rslora=True), seed=3
    )
    report = merge(base, first, second, output=tmp_path / "merged")

    model = load_adapted(GPT2, base, first, second)
    merged = model.merge_and_unload(adapter_names=["default", "adapter0"]).state_dict()
    assert assert_rounded(read_folder(tmp_path / "merged"), read_folder(base), merged) == 6 + 2
    assert any("summed" in warning for warning in report.warnings)


def test_the_order_of_two_adapters_does_not_matter_in_float32(tmp_path: Path) -> None:
    base = write_base(GPT2, tmp_path / "base", torch.float32)
    adapters = [
        write_adapter(GPT2, base, tmp_path / str(seed), lora(target_modules=["c_fc"]), seed=seed) for seed in (2, 3)
    ]
    merge(base, *adapters, output=tmp_path / "forth")
    merge(base, *reversed(adapters), output=tmp_path / "back")
    forth, back = read_folder(tmp_path / "forth"), read_folder(tmp_path / "back")
    assert all(torch.equal(forth[name], back[name]) for name in forth)


def test_dora_beside_another_adapter_is_refused(tmp_path: Path) -> None:
    base = write_base(GPT2, tmp_path / "base", torch.float32)
    dora = write_adapter(GPT2, base, tmp_path / "dora", lora(target_modules=["c_fc"], use_dora=True))
    plain = write_adapter(GPT2, base, tmp_path / "plain", lora(target_modules=["c_fc"]))
    for order in ((dora, plain), (plain, dora)):
        with pytest.raises(MismatchError, match="one of them DoRA"):
            merge(base, *order, output=tmp_path / "merged")


def test_two_adapters_of_one_embedding_are_summed_though_peft_saved_it_with_each(tmp_path: Path) -> None:
    base = write_base(LLAMA, tmp_path / "base", torch.float32)
    adapters = []
    for seed in (2, 3):
        config = lora(target_modules=["embed_tokens"])
        adapters.append(write_adapter(LLAMA, base, tmp_path / str(seed), config, seed=seed))
    for adapter in adapters:
        names = load_file(adapter / "adapter_model.safetensors").keys()
        assert "base_model.model.model.embed_tokens.base_layer.weight" in names
    merge(base, *adapters, output=tmp_path / "merged")
    merged = load_adapted(LLAMA, base, *adapters).merge_and_unload(adapter_names=["default", "adapter0"]).state_dict()
    assert assert_rounded(read_folder(tmp_path / "merged"), read_folder(base), merged) == 1


# The class that the base was saved from, and the one that the adapter was trained on: one has the other inside.
INNER_AND_OUTER = [
    (GPT2, "GPT2Model", "transformer."),
    (BERT, "BertModel", "bert."),
    (LLAMA, "LlamaModel", "model."),
]


@pytest.mark.parametrize(("network", "inner", "prefix"), INNER_AND_OUTER, ids=lambda value: str(value)[:12])
def test_an_adapter_of_the_whole_network_fits_a_base_without_its_head(
    network: Network, inner: str, prefix: str, tmp_path: Path
) -> None:
    whole = write_base(network, tmp_path / "whole", torch.float32)
    getattr(transformers, inner).from_pretrained(whole, dtype=torch.float32).save_pretrained(tmp_path / "inner")
    adapter = write_adapter(network, whole, tmp_path / "adapter", lora(target_modules=list(network.targets)))

    report = merge(tmp_path / "inner", adapter, output=tmp_path / "merged")

    before, found = read_folder(tmp_path / "inner"), read_folder(tmp_path / "merged")
    assert found.keys() == before.keys()
    assert not any(name.startswith(prefix) for name in found)
    expected = merged_by_peft(load_adapted(network, whole, adapter))
    inner_expected = {name.removeprefix(prefix): tensor for name, tensor in expected.items()}
    # LlamaModel and GPT2Model have no other weights; BertModel has a pooler, which the whole network has not.
    inner_expected = {**{name: tensor.double() for name, tensor in before.items()}, **inner_expected}
    assert assert_rounded(found, before, inner_expected) > 0
    assert report.adapters[0].names


@pytest.mark.parametrize(("network", "inner", "prefix"), INNER_AND_OUTER, ids=lambda value: str(value)[:12])
def test_an_adapter_of_the_inner_network_fits_a_base_with_a_head(
    network: Network, inner: str, prefix: str, tmp_path: Path
) -> None:
    whole = write_base(network, tmp_path / "whole", torch.float32)
    model = getattr(transformers, inner).from_pretrained(whole, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, lora(target_modules=list(network.targets)))
    shake(adapted, 2)
    adapted.save_pretrained(tmp_path / "adapter")

    merge(whole, tmp_path / "adapter", output=tmp_path / "merged")

    before, found = read_folder(whole), read_folder(tmp_path / "merged")
    expected = {prefix + name: tensor.double() for name, tensor in merged_by_peft(adapted.double()).items()}
    assert assert_rounded(found, before, {**{name: t.double() for name, t in before.items()}, **expected}) > 0


class Convolutions(nn.Module):
    """Every convolution that PEFT adapts, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(6, 6, 3)
        self.plane = nn.Conv2d(6, 10, (3, 2))
        self.point = nn.Conv2d(10, 10, 1)
        self.space = nn.Conv3d(4, 4, 2, bias=False)
        self.dense = nn.Linear(10, 10)


CONVOLUTIONS = ["line", "plane", "point", "space", "dense"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"bias": "lora_only"}, {"rank_pattern": {"plane": 2}, "use_rslora": True}],
    ids=str,
)
def test_convolutions_are_merged_as_peft_merges_them(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(Convolutions().to(DTYPES[dtype]).state_dict(), tmp_path / "base.safetensors", {"format": "pt"})
    adapted = get_peft_model(_load(Convolutions(), tmp_path), lora(target_modules=CONVOLUTIONS, **options))
    shake(adapted, 2)
    adapted.save_pretrained(tmp_path / "adapter")

    merge(tmp_path / "base.safetensors", tmp_path / "adapter", output=tmp_path / "merged.safetensors")

    reference = PeftModel.from_pretrained(_load(Convolutions(), tmp_path).double(), tmp_path / "adapter").double()
    before, found = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "merged.safetensors")
    assert assert_rounded(found, before, merged_by_peft(reference)) >= len(CONVOLUTIONS)


def _load(model: nn.Module, folder: Path) -> nn.Module:
    model.load_state_dict(load_file(folder / "base.safetensors"))
    return model
