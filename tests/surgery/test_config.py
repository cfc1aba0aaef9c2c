"""Rank, alpha and scale of a layer, as a configuration has them."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from surgery.config import LAYER_PATTERN, LoraConfig
from surgery.errors import MismatchError

LAYER = "model.layers.1.self_attn.q_proj"


def test_the_scale_is_alpha_over_rank() -> None:
    assert LoraConfig("c", rank=8, alpha=16).scaling(LAYER) == 2


def test_the_scale_of_rank_stabilised_lora_is_alpha_over_the_root_of_the_rank() -> None:
    assert LoraConfig("c", rank=16, alpha=8, use_rslora=True).scaling(LAYER) == 2


def test_the_shapes_rank_serves_where_the_file_has_none() -> None:
    assert LoraConfig("c", alpha=16).scaling(LAYER, 4) == 4


# Patterns and layers that PEFT 0.21.2's get_pattern_key was asked about.
@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("model.layers.1.self_attn.q_proj", True),
        ("^model.layers.1.self_attn.q_proj", True),
        (r".*\.layers\.[01]\..*", True),
        ("q_proj|v_proj", True),
        ("^q_proj", False),
        ("proj", False),
        ("q_pro", False),
        ("layers.1", False),
    ],
)
def test_a_pattern_matches_from_a_dot_on_to_the_end(pattern: str, matches: bool) -> None:
    config = LoraConfig("c", rank=8, alpha=16, rank_pattern={pattern: 2}, alpha_pattern={pattern: 64.0})
    assert config.rank_of(LAYER) == (2 if matches else 8)
    assert config.alpha_of(LAYER) == (64 if matches else 16)
    assert config.scaling(LAYER) == (32 if matches else 2)


def test_a_plain_pattern_matches_what_its_regular_expression_does() -> None:
    patterns = ["".join(signs) for count in (1, 2, 3) for signs in itertools.product("a.-", repeat=count)]
    layers = ["".join(signs) for count in (1, 2, 3, 4) for signs in itertools.product("a.x\n", repeat=count)]
    for pattern in patterns:
        config = LoraConfig("c", alpha_pattern={pattern: 64.0})
        expression = re.compile(LAYER_PATTERN.replace("{}", pattern))
        for layer in layers:
            assert (config.alpha_of(layer) is not None) == bool(expression.match(layer)), (pattern, layer)


def test_the_first_pattern_that_matches_counts() -> None:
    assert LoraConfig("c", rank_pattern={"v_proj": 1, "q_proj": 2, ".*q_proj": 3}).rank_of(LAYER) == 2


@pytest.mark.parametrize("alpha", [None, 0.0, math.nan, math.inf])
def test_an_alpha_that_gives_no_scale_is_refused(alpha: float | None) -> None:
    with pytest.raises(MismatchError, match="alpha"):
        LoraConfig("c", rank=8, alpha=alpha).scaling(LAYER)


@pytest.mark.parametrize("rank", [None, 0, -8])
def test_a_rank_that_is_not_positive_is_refused(rank: int | None) -> None:
    with pytest.raises(MismatchError, match="a positive rank"):
        LoraConfig("c", rank=rank, alpha=16).scaling(LAYER)


def test_a_rank_other_than_the_shapes_is_refused() -> None:
    with pytest.raises(MismatchError, match=f"c, layer {LAYER}: expected rank 4, .*found rank 8"):
        LoraConfig("c", rank=8, alpha=16).scaling(LAYER, 4)
