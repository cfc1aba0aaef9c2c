"""Every option of PEFT's LoRA on every kind of network, against PEFT's own merge in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from peft import LoraConfig
from peft_models import DTYPES, NETWORKS, Network, load_adapted, logits, lora, write_adapter, write_base
from peft_reference import assert_rounded, assert_speaks_alike, merged_by_peft, read_folder

from ckpt_tools import merge

Bases = Callable[[str, str, bool], Path]
Option = Callable[[Network], LoraConfig]

CAUSAL = ("llama", "qwen2", "gpt2", "bert")
CLASSIFIERS = ("llama-classifier", "bert-classifier")
WITH_BIASES = ("qwen2", "gpt2", "bert")
# Networks whose head is a layer of its own, or has none: an adapter of their embedding unties nothing.
UNTIED = ("llama", "llama-classifier", "bert-classifier")


def _plain(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets))


def _patterns(network: Network) -> LoraConfig:
    first, second, *_ = network.targets
    return lora(
        target_modules=list(network.targets),
        rank_pattern={rf"(h|layer|layers)\.0\..*{first}": 7, second: 3, "never": 99},
        alpha_pattern={rf"^.*\.1\..*{first}$": 5, first: 11, network.targets[-1]: 1.5},
    )


def _rslora(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), use_rslora=True, alpha_pattern={network.targets[0]: 3})


def _dora(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), use_dora=True)


def _dora_rslora(network: Network) -> LoraConfig:
    return lora(
        target_modules=list(network.targets), use_dora=True, use_rslora=True, rank_pattern={network.targets[0]: 2}
    )


def _fan_in_fan_out(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), fan_in_fan_out=True)


def _bias_all(network: Network) -> LoraConfig:
    return lora(target_modules=[network.targets[0]], bias="all")


def _bias_lora_only(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets[:2]), bias="lora_only")


def _lora_bias(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets[:3]), lora_bias=True)


def _head_saved(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), modules_to_save=[network.head])


def _embedding_saved(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), modules_to_save=[network.embedding])


def _embedding(network: Network) -> LoraConfig:
    return lora(target_modules=[network.targets[0], network.embedding])


def _embedding_dora(network: Network) -> LoraConfig:
    return lora(target_modules=[network.embedding], use_dora=True)


def _head(network: Network) -> LoraConfig:
    return lora(target_modules=[network.targets[0], network.head])


def _some_layers(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), layers_to_transform=[1])


def _layers_pattern(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), layers_to_transform=0, layers_pattern=["h", "layer", "layers"])


def _excluded(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), exclude_modules=list(network.targets[1:]))


def _excluded_by_expression(network: Network) -> LoraConfig:
    return lora(target_modules=list(network.targets), exclude_modules=rf".*\.0\..*{network.targets[0]}")


def _expression(network: Network) -> LoraConfig:
    first, second, *_ = network.targets
    return lora(target_modules=rf".*\.(0\..*{first}|1\..*{second})")


def _all_linear(network: Network) -> LoraConfig:
    return lora(target_modules="all-linear")


@dataclass(frozen=True)
class Case:
    option: Option
    networks: tuple[str, ...]


CASES = (
    Case(_plain, (*CAUSAL, *CLASSIFIERS)),
    Case(_patterns, CAUSAL),
    Case(_rslora, CAUSAL),
    Case(_dora, CAUSAL),
    Case(_dora_rslora, ("llama", "gpt2")),
    Case(_fan_in_fan_out, CAUSAL),
    Case(_bias_all, (*WITH_BIASES, "bert-classifier")),
    Case(_bias_lora_only, WITH_BIASES),
    Case(_lora_bias, WITH_BIASES),
    Case(_head_saved, UNTIED),
    Case(_embedding_saved, UNTIED),
    Case(_embedding, UNTIED),
    Case(_embedding_dora, UNTIED),
    Case(_head, UNTIED),
    Case(_some_layers, CAUSAL),
    Case(_layers_pattern, CAUSAL),
    Case(_excluded, CAUSAL),
    Case(_excluded_by_expression, CAUSAL),
    Case(_expression, CAUSAL),
    Case(_all_linear, (*CAUSAL, *CLASSIFIERS)),
)


def _matrix() -> Iterator[object]:
    for case in CASES:
        for name in case.networks:
            for dtype in DTYPES:
                title = f"{case.option.__name__[1:]}-{name}-{dtype}"
                yield pytest.param(case.option, name, dtype, False, id=title)
            if case.option in (_plain, _dora, _bias_all, _head_saved, _embedding, _all_linear):
                yield pytest.param(case.option, name, "bf16", True, id=f"{case.option.__name__[1:]}-{name}-sharded")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Makes each base once: (network, type, whether in shards) -> folder."""
    made: dict[tuple[str, str, bool], Path] = {}

    def make(name: str, dtype: str, is_sharded: bool) -> Path:
        key = name, dtype, is_sharded
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(map(str, key)))
            size = "40KB" if is_sharded else "5GB"
            made[key] = write_base(NETWORKS[name], folder, DTYPES[dtype], max_shard_size=size)
        return made[key]

    return make


@pytest.mark.parametrize(("option", "name", "dtype", "is_sharded"), list(_matrix()))
def test_merged_weights_and_logits_are_those_of_peft(
    option: Option, name: str, dtype: str, is_sharded: bool, bases: Bases, tmp_path: Path
) -> None:
    network, base = NETWORKS[name], bases(name, dtype, is_sharded)
    adapter = write_adapter(network, base, tmp_path / "adapter", option(network))

    merge(base, adapter, output=tmp_path / "merged")

    before, found = read_folder(base), read_folder(tmp_path / "merged")
    assert found.keys() == before.keys()
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[dtype]}
    adapted = load_adapted(network, base, adapter)
    assert_speaks_alike(network, tmp_path / "merged", logits(adapted), base)
    assert assert_rounded(found, before, merged_by_peft(adapted)) > 0
    shards = {path.name for path in base.glob("*.safetensors")}
    assert {path.name for path in (tmp_path / "merged").glob("*.safetensors")} == shards
    assert (len(shards) > 1) == is_sharded
