"""Every method on every network: built, run and trained in both modes, or refused with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import MODELS, MODES, PAIR, Model, PrefixNet, changed, output, seed, train, use_mode, values
from support_results import check_results

from surgery.errors import MismatchError
from surgery.network import inject

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 4, "lora_dropout": 0.0},
    "ptuning2": {"pre_seq_len": 8, "prefix_projection": True, "projection_dim": 16, "dropout_rate": 0.0},
    "prefixtuning": {"prefix_token_num": 8, "mid_dim": 16, "dropout_rate": 0.0},
    "adapter": {"bottleneck_size": 8},
    "low_rank_adapter": {"reduction_factor": 2},
    "bitfit": {},
}
PREFIXES = ("ptuning2", "prefixtuning")
NETWORKS = {**MODELS, "plain": Model(PrefixNet, "query|value", MODELS["plain"].inputs, MODELS["plain"].training)}

# What does not go together: what the error says, and the page.
NO_PREFIX = (
    "no argument prefix_keys_values of its construct",
    "its `construct` has no argument `prefix_keys_values`, by which MindFormers hands a prefix over",
)
ONLY_LORA = (
    "of the parallel core, for which there is only LoRA",
    "neither MindPet nor MindFormers has more than LoRA for these layers",
)
REFUSED = {
    **{(model, method): NO_PREFIX for model in ("glm2", "gpt2", "bloom", "parallel_core") for method in PREFIXES},
    ("llama", "bitfit"): (r"no parameter of BitFit \(\*bias\)", "it has no bias that could be trained"),
    ("parallel_core", "adapter"): ONLY_LORA,
    ("parallel_core", "low_rank_adapter"): ONLY_LORA,
}
# What the framework cannot run on a CPU, in which mode, and why.
UNSUPPORTED = {
    ("parallel_core", "pynative"): "MindSpore runs `Morph`, which these layers are made of, in graph mode only"
}

_RESULTS: dict[str, dict[str, object]] = {}


def configuration(model: Model, method: str) -> dict[str, Any]:
    rule = {} if method in (*PREFIXES, "bitfit") else {"target_modules": model.rule}
    return {"pet_type": method, **rule, **METHODS[method]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_method_on_a_network_trains_or_is_refused(name: str, method: str) -> None:
    model, cells = NETWORKS[name], _RESULTS.setdefault(name, {})
    config = configuration(model, method)
    if (name, method) in REFUSED:
        pattern, reason = REFUSED[name, method]
        with pytest.raises(MismatchError, match=pattern):
            inject(model.make(), config)
        cells[method] = {"refused": reason}
        return
    found = {}
    for mode in MODES:
        if (name, mode) in UNSUPPORTED:
            found[mode] = UNSUPPORTED[name, mode]
            continue
        use_mode(mode)
        seed()
        network = inject(model.make(), config).network
        before, fresh = values(network), output(network, model.inputs)
        losses = train(network, model.training, steps=2 if method != "lora" else 3)
        assert np.isfinite(losses).all()
        trained = {parameter.name for parameter in network.trainable_params()}
        assert changed(before, network) == trained
        assert np.abs(output(network, model.inputs) - fresh).max() > 0
        found[mode] = "build, forward, train"
    cells[method] = found


def test_the_results_are_those_of_the_page() -> None:
    assert set(_RESULTS) == set(NETWORKS), "run the whole module"
    check_results(PAIR, "networks", _RESULTS)
