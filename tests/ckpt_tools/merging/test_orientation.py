"""Which way round a square weight is: told by the weights around it, by the configuration where those are silent."""

from __future__ import annotations

import pytest

from ckpt_tools.merging.orientation import square_orientations

GPT2 = {
    "h.0.attn.c_attn.weight": (16, 48),
    "h.0.attn.c_attn.bias": (48,),
    "h.0.attn.c_proj.weight": (16, 16),
    "h.0.attn.c_proj.bias": (16,),
    "h.0.mlp.c_fc.weight": (16, 64),
    "h.0.mlp.c_fc.bias": (64,),
    "h.0.mlp.c_proj.weight": (64, 16),
    "h.0.mlp.c_proj.bias": (16,),
    "lm_head.weight": (96, 16),
}
# The same names, as GPTBigCode has them: of Linear layers.
BIG_CODE = {name: shape[::-1] for name, shape in GPT2.items()}
SQUARE = "h.0.attn.c_proj.weight"


def _of(shapes: dict[str, tuple[int, ...]], known: dict[str, bool], flag: bool, square: str = SQUARE) -> bool:
    return square_orientations([square], known, shapes, fan_in_fan_out=flag)[square]


@pytest.mark.parametrize("flag", [False, True])
def test_a_bias_in_the_base_tells_what_the_configuration_got_wrong(flag: bool) -> None:
    assert _of(GPT2, {}, flag) is True
    assert _of(BIG_CODE, {}, flag) is False


@pytest.mark.parametrize("flag", [False, True])
def test_an_adapted_head_of_another_orientation_is_no_witness_against_the_block(flag: bool) -> None:
    assert _of(GPT2, {"lm_head.weight": False, "h.0.attn.c_attn.weight": True}, flag) is True


def test_the_part_is_asked_where_all_of_the_name_are_square() -> None:
    shapes = {"h.0.attn.c_attn.weight": (16, 48), SQUARE: (16, 16), "head.weight": (96, 16), "head.bias": (96,)}
    assert _of(shapes, {"h.1.attn.c_attn.weight": True}, flag=False) is True


def test_any_weight_is_asked_where_its_part_is_silent() -> None:
    shapes = {"layer.0.query.weight": (16, 16), "layer.0.dense.weight": (24, 16), "layer.0.dense.bias": (24,)}
    assert _of(shapes, {}, flag=True, square="layer.0.query.weight") is False


@pytest.mark.parametrize("flag", [False, True])
def test_the_configuration_is_believed_where_nothing_speaks(flag: bool) -> None:
    assert _of({SQUARE: (16, 16)}, {}, flag) is flag
    assert _of({SQUARE: (16, 16)}, {"a.x.weight": True, "b.x.weight": False}, flag) is flag


def test_a_layer_that_is_linear_in_every_network_is_no_conv1d() -> None:
    square = "model.layers.0.self_attn.q_proj.weight"
    assert _of({square: (16, 16)}, {}, flag=True, square=square) is False
