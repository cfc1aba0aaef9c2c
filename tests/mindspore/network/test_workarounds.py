"""Gaps of the packages that are closed: each test fails where the gap is gone, so that its closing can go too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindpet.delta.low_rank_adapter import LowRankLinear
from mindpet.delta.prefix_layer import PrefixLayer
from mindspore import Tensor, nn, ops
from networks import changed, train, use_mode, values

from surgery.network import TrainablePrefixLayer
from surgery.network.workarounds import give_cast

FREEZES = """
from mindpet.graph.freeze_utils import freeze_modules
from mindspore import nn
freeze_modules(nn.Dense(2, 2), include=["weight"])
print("frozen")
"""


def prints_frozen(program: str, **environment: str) -> bool:
    known = {key: value for key, value in os.environ.items() if key != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=known | environment, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()[-1:] == ["frozen"]


def test_mindpet_goes_on_where_there_is_no_home() -> None:
    assert not prints_frozen(FREEZES, HOME="/missing/home"), "the gap is closed: remove give_log_folder"
    assert prints_frozen(f"import surgery.network\n{FREEZES}", HOME="/missing/home")


def test_a_usable_home_is_left_to_mindpet(tmp_path: Path) -> None:
    assert prints_frozen(f"import surgery.network\n{FREEZES}", HOME=str(tmp_path))
    assert (tmp_path / ".cache" / "Huawei" / "mxTuningKit").is_dir()


def test_cells_without_cast_get_one_and_no_other() -> None:
    assert not hasattr(nn.Cell, "cast"), "the gap is closed: remove give_cast"
    assert hasattr(LowRankLinear, "cast")

    class Own:
        cast = "its own"

    give_cast((Own,), ops.Cast())
    assert Own.cast == "its own"


class Attention(nn.Cell):
    """Attention of one query to a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = TrainablePrefixLayer(4, num_heads=2, hidden_dim=16, embed_dim=8, mid_dim=8, dropout_rate=0.0)

    def construct(self, x: Tensor) -> Tensor:
        key, value = self.prefix(x.shape[0])
        query = x.reshape((x.shape[0], 2, 1, 8))
        weights = ops.softmax((query * key).sum(-1, keepdims=True), 2)
        return (weights * value).sum(2).reshape(x.shape)


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_a_prefix_for_attention_written_by_hand_trains(mode: str) -> None:
    use_mode(mode)
    network = Attention()
    before = values(network)
    train(network, (np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32),))
    assert changed(before, network) == {parameter.name for parameter in network.trainable_params()}
    assert len(before) - len(network.trainable_params()) == 1  # its tokens


def test_its_key_is_not_its_value_as_mindpets_is() -> None:
    theirs = PrefixLayer(4, 1, 2, 16, 8, 8)
    assert np.array_equal(theirs.past_key_reparam.asnumpy(), theirs.past_value_reparam.asnumpy())
    assert "construct" not in vars(PrefixLayer), "the gap is closed: remove TrainablePrefixLayer"
    key, value = Attention().prefix(3)
    assert key.shape == value.shape == (3, 2, 4, 8)
    assert not np.array_equal(key.asnumpy(), value.asnumpy())
    assert np.array_equal(key.asnumpy()[0], key.asnumpy()[2]), "one prefix for all samples"


def test_a_prefix_that_does_not_divide_into_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_dim 15 is no multiple of num_heads 2"):
        TrainablePrefixLayer(4, num_heads=2, hidden_dim=15, embed_dim=8)
