"""Combinations of adapters, beside PEFT's own `add_weighted_adapter` on the same adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel
from peft_models import NETWORKS, Network, logits, lora, write_adapter, write_base
from peft_reference import read_folder

from ckpt_tools import combine, merge, verify
from surgery.combining import METHODS
from surgery.draws import uniform_draws

FACTORS = [name for name, method in METHODS.items() if method.of == "factors"]
DELTAS = [name for name, method in METHODS.items() if method.of == "delta"]
WEIGHTS = (0.7, -0.4)
DENSITY = 0.6
SEED = 5


def _options(method: str) -> dict[str, Any]:
    known = METHODS[method]
    options: dict[str, Any] = {"density": DENSITY} if known.prune else {}
    return options | ({"seed": SEED} if known.prune == "random" else {})


def _load(network: Network, base: Path, adapters: Sequence[Path]) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(network.load(base, torch.float32), adapters[0], adapter_name="0")
        for number, adapter in enumerate(adapters[1:], 1):
            model.load_adapter(adapter, str(number))
    return model.eval()


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """LoRA layers by their names in the base, in the order in which PEFT combines them."""
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            yield name, module


def _masks(model: PeftModel, method: str, count: int) -> Iterator[torch.Tensor]:
    """What this project keeps of each task, in the order in which PEFT asks for it."""
    for name, module in _layers(model):
        present = [number for number in range(count) if str(number) in {*module.lora_A, *module.lora_embedding_A}]
        if METHODS[method].of == "factors":
            for slot in "AB":
                for number in present:
                    values = _factor(module, str(number), slot)
                    draws = uniform_draws(SEED, f"{name} {number} 0 {slot}", 0, values.numel())
                    yield torch.from_numpy((draws < DENSITY).astype(np.float32).reshape(values.shape))
            continue
        for number in present:
            out, inner = _factor(module, str(number), "B").shape[0], _factor(module, str(number), "A").shape[1]
            shape = (out, inner) if out >= inner else (inner, out)
            draws = uniform_draws(SEED, f"{name} {number} 0", 0, out * inner)
            mask = torch.from_numpy((draws < DENSITY).astype(np.float32).reshape(shape))
            mask = mask if out >= inner else mask.T
            is_transposed = getattr(module, "fan_in_fan_out", False) or str(number) in module.lora_embedding_A
            yield mask.T if is_transposed else mask


def _factor(module: Any, adapter: str, slot: str) -> torch.Tensor:
    embeddings = getattr(module, f"lora_embedding_{slot}")
    return embeddings[adapter] if adapter in embeddings else getattr(module, f"lora_{slot}")[adapter].weight


def _add_weighted(
    model: PeftModel, method: str, weights: Sequence[float], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    """PEFT's combination as the active adapter; what it drops at random is what this project draws."""
    masks = _masks(model, method, len(weights))

    def drawn(probabilities: torch.Tensor) -> torch.Tensor:
        mask = next(masks)
        assert mask.shape == probabilities.shape
        assert bool((probabilities == DENSITY).all())
        return mask

    with monkeypatch.context() as patched:
        if METHODS[method].prune == "random":
            patched.setattr(torch, "bernoulli", drawn)
        density = {"density": DENSITY} if METHODS[method].prune else {}
        names = [str(number) for number in range(len(weights))]
        model.base_model.add_weighted_adapter(names, list(weights), "new", method, **density, **options)
    if METHODS[method].prune == "random":
        assert next(masks, None) is None
    model.set_adapter("new")


def _combined(model: PeftModel) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    return {
        name: (_factor(module, "new", "A").detach(), _factor(module, "new", "B").detach(), module.scaling["new"])
        for name, module in _layers(model)
        if "new" in {*module.lora_A, *module.lora_embedding_A}
    }


def _written(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    tensors: Mapping[str, torch.Tensor] = read_folder(folder)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(".base_layer.weight"):
            continue  # which PEFT saves of embeddings that it adapts
        layer, _, slot = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        found.setdefault(layer, {})[slot[-1]] = tensor
    return {layer: (pair["A"], pair["B"]) for layer, pair in found.items()}


def _adapters(tmp_path: Path, kind: str, *configs: Mapping[str, Any]) -> tuple[Network, Path, list[Path]]:
    network = NETWORKS[kind]
    base = write_base(network, tmp_path / "base", torch.float32)
    folders = [
        write_adapter(network, base, tmp_path / f"adapter{number}", lora(**config), seed=10 + number)
        for number, config in enumerate(configs)
    ]
    return network, base, folders


def _alike(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two configurations of one rank, whose targets overlap in part."""
    targets = NETWORKS[kind].targets
    return {"target_modules": list(targets[:2])}, {"target_modules": list(targets[1:]), "lora_alpha": 3}


@pytest.mark.parametrize("method", FACTORS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_methods_on_a_and_b_give_the_a_and_b_of_peft(
    tmp_path: Path, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, base, adapters = _adapters(tmp_path, kind, *_alike(kind))
    combine(*adapters, output=tmp_path / "new", weight=WEIGHTS, method=method, **_options(method))
    model = _load(network, base, adapters)
    _add_weighted(model, method, WEIGHTS, monkeypatch)
    expected, found = _combined(model), _written(tmp_path / "new")
    assert found.keys() == expected.keys()
    for name, (a, b, scaling) in expected.items():
        assert scaling == 1
        torch.testing.assert_close(found[name][0], a, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found[name][1], b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["cat", *DELTAS])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_methods_on_the_update_give_the_update_of_peft_for_other_ranks_and_scales(
    tmp_path: Path, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = NETWORKS[kind].targets
    first = {"target_modules": list(targets[:2]), "r": 3}
    second = {"target_modules": list(targets[1:]), "lora_alpha": 3, "r": 5, "use_rslora": True}
    network, base, adapters = _adapters(tmp_path, kind, first, second)
    combine(*adapters, output=tmp_path / "new", weight=WEIGHTS, method=method, **_options(method))
    model = _load(network, base, adapters)
    _add_weighted(model, method, WEIGHTS, monkeypatch)
    expected, found = _combined(model), _written(tmp_path / "new")
    assert found.keys() == expected.keys()
    for name, (a, b, scaling) in expected.items():
        update = scaling * (b @ a)
        ours = found[name][1] @ found[name][0]
        assert float((ours - update).norm()) <= 2e-5 * float(update.norm()), name


@pytest.mark.parametrize("method", ["ties", "dare_ties", "ties_svd", "dare_ties_svd"])
def test_signs_elected_by_frequency_are_those_of_peft(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (0.7, 0.2, -0.1)
    config = {"target_modules": ["q_proj", "down_proj"]}
    network, base, adapters = _adapters(tmp_path, "llama", config, config, config)
    options = _options(method) | {"majority_sign": "frequency"}
    combine(*adapters, output=tmp_path / "new", weight=weights, method=method, **options)
    model = _load(network, base, adapters)
    _add_weighted(model, method, weights, monkeypatch, majority_sign_method="frequency")
    for name, (a, b, _) in _combined(model).items():
        ours = _written(tmp_path / "new")[name]
        update = b @ a
        assert float((ours[1] @ ours[0] - update).norm()) <= 2e-5 * float(update.norm()), name


@pytest.mark.parametrize("rank", [2, 6])
@pytest.mark.parametrize("method", ["svd", "ties_svd"])
def test_a_chosen_rank_is_pefts_svd_rank(
    tmp_path: Path, method: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, base, adapters = _adapters(tmp_path, "llama", *_alike("llama"))
    combine(*adapters, output=tmp_path / "new", weight=WEIGHTS, method=method, resize_rank=rank, **_options(method))
    model = _load(network, base, adapters)
    _add_weighted(model, method, WEIGHTS, monkeypatch, svd_rank=rank)
    found = _written(tmp_path / "new")
    for name, (a, b, _) in _combined(model).items():
        assert found[name][0].shape == a.shape
        assert found[name][1].shape == b.shape
        update = b @ a
        assert float((found[name][1] @ found[name][0] - update).norm()) <= 2e-5 * float(update.norm()), name


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties", "dare_linear_svd"])
def test_embeddings_are_combined_as_peft_does(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"target_modules": ["embed_tokens", "q_proj"]}
    network, base, adapters = _adapters(tmp_path, "llama", config, config)
    combine(*adapters, output=tmp_path / "new", weight=WEIGHTS, method=method, **_options(method))
    model = _load(network, base, adapters)
    _add_weighted(model, method, WEIGHTS, monkeypatch)
    found, expected = _written(tmp_path / "new"), _combined(model)
    assert "model.embed_tokens" in expected
    for name, (a, b, _) in expected.items():
        update = b @ a
        assert float((found[name][1] @ found[name][0] - update).norm()) <= 2e-5 * float(update.norm()), name


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_loads_a_combination_and_it_speaks_as_pefts_own(
    tmp_path: Path, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, base, adapters = _adapters(tmp_path, kind, *_alike(kind))
    combine(*adapters, output=tmp_path / "new", weight=WEIGHTS, method=method, **_options(method))
    model = _load(network, base, adapters)
    _add_weighted(model, method, WEIGHTS, monkeypatch)
    ours = _load(network, base, [tmp_path / "new"])
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=2e-4)
    assert not torch.allclose(logits(ours), logits(network.load(base, torch.float32)), rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_folding_a_combination_is_pefts_combination_merged(
    tmp_path: Path, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, base, adapters = _adapters(tmp_path, kind, *_alike(kind))
    options = {"weight": WEIGHTS, "method": method, **_options(method)}
    merge(base, *adapters, output=tmp_path / "merged", **options)
    model = _load(network, base, adapters)
    _add_weighted(model, method, WEIGHTS, monkeypatch)
    expected = dict(model.merge_and_unload().state_dict())
    found = read_folder(tmp_path / "merged")
    changed = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5)
        changed += not torch.equal(tensor, read_folder(base)[name])
    assert changed >= 4
    assert verify(base, *adapters, merged=tmp_path / "merged", strict=True, **options).passed
