"""Which layers the names and shapes of a checkpoint show."""

from __future__ import annotations

import pytest

from surgery.errors import MismatchError
from surgery.methods import LayerKind
from surgery.recognition import TensorFacts, body_of, count_layers, recognise_layers


def recognised(**shapes: tuple[int, ...]) -> dict[str, LayerKind]:
    facts = {f"{name.replace('__', '.')}.weight": TensorFacts(shape, "bf16") for name, shape in shapes.items()}
    return {path: layer.kind for path, layer in recognise_layers(facts).layers.items()}


def test_cells_stand_behind_those_that_they_are_in() -> None:
    facts = {"b.0.x.weight": TensorFacts((2, 3), "fp32"), "b.0.norm.gamma": TensorFacts((3,), "fp32")}
    cells = recognise_layers(facts).cells
    assert [cell.path for cell in cells] == ["b", "b.0", "b.0.x", "b.0.norm"]
    assert [bool(cell.obstacle) for cell in cells] == [True, True, False, True]


def test_layers_of_the_parallel_core_are_told_by_their_place() -> None:
    prefix = "decoder__layers__0__"
    found = recognised(
        **{
            f"{prefix}self_attention__linear_qkv": (48, 16),
            f"{prefix}self_attention__linear_proj": (16, 16),
            f"{prefix}mlp__linear_fc1": (64, 16),
            f"{prefix}mlp__linear_fc2": (16, 32),
            f"{prefix}mlp__router": (4, 16),
            "output_layer": (99, 16),
        }
    )
    column, row = LayerKind.COLUMN_PARALLEL, LayerKind.ROW_PARALLEL
    assert list(found.values()) == [column, row, column, row, column]
    assert set(recognised(linear_qkv=(4, 4), output_layer=(4, 4)).values()) == {LayerKind.DENSE}


@pytest.mark.parametrize(
    ("name", "is_linear"),
    [
        ("embed_tokens", False),
        ("word_embeddings", False),
        ("position_embedding", False),
        ("wte", False),
        ("wpe", False),
        ("embed_in", False),
        ("embed_out", True),
        ("lm_head", True),
        ("embed_proj", True),
        ("w1", True),
    ],
)
def test_embeddings_are_told_by_their_name(name: str, is_linear: bool) -> None:
    assert bool(recognised(**{name: (8, 4)})) == is_linear


def test_the_axes_of_a_weight_are_told_by_its_bias() -> None:
    facts = {"x.weight": TensorFacts((4, 12), "fp32"), "x.bias": TensorFacts((12,), "fp32")}
    layer = recognise_layers(facts).layers["x"]
    assert (layer.in_channels, layer.out_channels) == (4, 12)
    facts["x.bias"] = TensorFacts((4,), "fp32")
    layer = recognise_layers(facts).layers["x"]
    assert (layer.in_channels, layer.out_channels) == (12, 4)


@pytest.mark.parametrize(
    ("names", "body"),
    [
        (["model.layers.0.w.weight", "lm_head.weight"], "model"),
        (["transformer.encoder.layers.0.w.weight"], "transformer"),
        (["backbone.blocks.0.w.weight", "model.w.weight"], "backbone"),
        (["blocks.0.w.weight", "model"], ""),
    ],
)
def test_the_body_is_the_attribute_where_mindformers_begins(names: list[str], body: str) -> None:
    assert body_of(names) == body


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([f"model.layers.{n}.w.weight" for n in range(3)], 3),
        ([f"transformer.h.{n}.w.weight" for n in range(2)], 2),
        (["model.layers.0.experts.7.w.weight", "model.layers.0.experts.9.w.weight"], 1),
        (["head.weight"], 0),
    ],
)
def test_layers_are_counted_by_their_numbers(names: list[str], count: int) -> None:
    assert count_layers(names) == count


def test_a_name_of_more_components_than_any_network_has_is_refused() -> None:
    with pytest.raises(MismatchError, match="found 32001 cells within each other"):
        recognise_layers({"x." * 32_001 + "weight": TensorFacts((2, 3), "fp32")})
