"""Adapter parameters put together by layer."""

from __future__ import annotations

import pytest

from surgery.errors import Problem
from surgery.grouping import LoraGroup, LoraPair, group_lora

Shapes = dict[str, tuple[int, ...]]

PAIRS: list[tuple[str, str, str, Shapes]] = [
    ("linear", "mindpet", "x.y.weight", {"x.y.mindpet_delta_lora_a": (4, 6), "x.y.mindpet_delta_lora_b": (8, 4)}),
    ("linear", "mindpet-bare", "weight", {"mindpet_delta_lora_A": (4, 6), "mindpet_delta_lora_B": (8, 4)}),
    ("linear", "tk", "x.weight", {"x.tk_delta_lora_a": (4, 6), "x.tk_delta_lora_b": (8, 4)}),
    ("linear", "pynative", "x.weight", {"x.lora_a": (4, 6), "x.lora_b": (8, 4)}),
    ("linear", "parallel-core", "x.weight", {"x.lora_A.weight": (4, 6), "x.lora_B.weight": (8, 4)}),
    (
        "linear",
        "peft",
        "x.weight",
        {"base_model.model.x.lora_A.weight": (4, 6), "base_model.model.x.lora_B.weight": (8, 4)},
    ),
    (
        "embedding",
        "peft",
        "x.weight",
        {"base_model.model.x.lora_embedding_A": (4, 16), "base_model.model.x.lora_embedding_B": (8, 4)},
    ),
    (
        "embedding",
        "pynative",
        "m.tok_embeddings.embedding_weight",
        {"m.tok_embeddings.lora_a": (4, 16), "m.tok_embeddings.lora_b": (8, 4)},
    ),
    ("expert", "pynative", "e.weight1", {"e.weight1_lora_a": (3, 6, 4), "e.weight1_lora_b": (3, 4, 8)}),
    (
        "conv",
        "peft",
        "x.weight",
        {"base_model.model.x.lora_A.weight": (4, 2, 3, 3), "base_model.model.x.lora_B.weight": (8, 4, 1, 1)},
    ),
]


def group(shapes: Shapes) -> LoraGroup:
    return group_lora(shapes, shapes)


def the_problem(shapes: Shapes) -> Problem:
    grouped = group(shapes)
    assert len(grouped.problems) == 1, grouped.problems
    return grouped.problems[0]


@pytest.mark.parametrize(("kind", "family", "base", "shapes"), PAIRS)
def test_a_and_b_of_every_family_make_a_pair(kind: str, family: str, base: str, shapes: Shapes) -> None:
    grouped = group(shapes)
    a, b = shapes
    assert grouped.problems == ()
    (pair,) = grouped.pairs
    assert (pair.kind, pair.family, pair.rank, pair.a, pair.b, pair.bases[0]) == (kind, family, 4, a, b, base)


@pytest.mark.parametrize(("kind", "family", "base", "shapes"), PAIRS)
def test_the_order_of_the_keys_does_not_matter(kind: str, family: str, base: str, shapes: Shapes) -> None:
    assert group(dict(reversed(shapes.items()))).pairs == group(shapes).pairs


def test_magnitude_and_bias_join_their_pair() -> None:
    peft = "base_model.model.x."
    shapes: Shapes = {
        f"{peft}lora_magnitude_vector": (8,),
        f"{peft}lora_B.bias": (8,),
        f"{peft}lora_A.weight": (4, 6),
        f"{peft}lora_B.weight": (8, 4),
    }
    (pair,) = group(shapes).pairs
    assert pair == LoraPair(
        layer="x",
        family="peft",
        kind="linear",
        rank=4,
        a=f"{peft}lora_A.weight",
        b=f"{peft}lora_B.weight",
        magnitude=f"{peft}lora_magnitude_vector",
        b_bias=f"{peft}lora_B.bias",
        bases=("x.weight", "x.in_proj_weight"),
    )
    assert pair.bias_base == "x.bias"


def test_an_adapter_of_a_multihead_attention_is_refused_as_peft_adds_a_part_of_it_twice() -> None:
    layer = "base_model.model.attn."
    shapes: Shapes = {
        f"{layer}lora_A.weight": (4, 8),
        f"{layer}lora_B.weight": (24, 4),
        f"{layer}base_layer.out_proj.lora_A.weight": (4, 8),
        f"{layer}base_layer.out_proj.lora_B.weight": (8, 4),
    }
    grouped = group(shapes)
    assert [pair.layer for pair in grouped.pairs] == ["attn"]
    (problem,) = grouped.problems
    assert problem.where == f"{layer}base_layer.out_proj.lora_A.weight"
    assert "MultiheadAttention" in problem.found
    assert "twice" in problem.found


@pytest.mark.parametrize("first", [True, False])
def test_the_magnitude_of_an_embedding_joins_the_embeddings_pair(first: bool) -> None:
    peft = "base_model.model.x."
    shapes: Shapes = {f"{peft}lora_embedding_A": (4, 16), f"{peft}lora_embedding_B": (8, 4)}
    magnitude: Shapes = {f"{peft}lora_magnitude_vector": (8,)}
    grouped = group({**magnitude, **shapes} if first else {**shapes, **magnitude})
    assert grouped.problems == ()
    assert [pair.magnitude for pair in grouped.pairs] == [f"{peft}lora_magnitude_vector"]


def test_a_convolutions_magnitude_may_have_the_weights_axes() -> None:
    peft = "base_model.model.x."
    shapes: Shapes = {
        f"{peft}lora_A.weight": (4, 2, 3, 3),
        f"{peft}lora_B.weight": (8, 4, 1, 1),
        f"{peft}lora_magnitude_vector": (1, 8, 1, 1),
    }
    assert group(shapes).problems == ()


def test_what_is_no_pair_is_accounted_for() -> None:
    shapes: Shapes = {
        "x.weight": (8, 6),
        "x.lora_a": (4, 6),
        "x.lora_b": (8, 4),
        "adam_m.x.lora_a": (4, 6),
        "global_step": (1,),
        "mindpet_delta_ptuning2_prefix": (16,),
        "base_model.model.x.original_module.weight": (8, 6),
    }
    grouped = group(shapes)
    assert [weight.name for weight in grouped.weights] == ["x.weight"]
    assert [state.name for state in grouped.states] == ["adam_m.x.lora_a", "global_step"]
    assert [method.name for method in grouped.methods] == ["mindpet_delta_ptuning2_prefix"]
    assert [dropped.name for dropped in grouped.dropped] == ["base_model.model.x.original_module.weight"]
    assert (len(grouped.pairs), grouped.problems) == (1, ())


@pytest.mark.parametrize(
    ("key", "shape", "missing"),
    [
        ("x.lora_a", (4, 6), "no B"),
        ("x.lora_b", (8, 4), "no A"),
        ("base_model.model.x.lora_magnitude_vector", (8,), "neither A nor B"),
    ],
)
def test_half_a_pair_is_a_problem(key: str, shape: tuple[int, ...], missing: str) -> None:
    problem = the_problem({key: shape})
    assert problem.where == key
    assert problem.found == f"{missing} for layer x"


def test_a_layer_in_two_spellings_is_a_problem() -> None:
    shapes: Shapes = {
        "x.lora_a": (4, 6),
        "x.lora_b": (8, 4),
        "x.mindpet_delta_lora_a": (4, 6),
        "x.mindpet_delta_lora_b": (8, 4),
    }
    assert [problem.where for problem in group(shapes).problems] == [
        "x.lora_a and x.mindpet_delta_lora_a",
        "x.lora_b and x.mindpet_delta_lora_b",
    ]


def test_a_and_b_in_two_spellings_are_a_problem() -> None:
    problem = the_problem({"x.lora_a": (4, 6), "x.mindpet_delta_lora_b": (8, 4)})
    assert "one is spelled as pynative, the other as mindpet" in problem.found


def test_target_parameters_of_one_module_are_a_problem() -> None:  # as PEFT 0.21.2 nests its wrappers
    shapes: Shapes = {
        "base_model.model.experts.base_layer.lora_A.weight": (6, 5),
        "base_model.model.experts.base_layer.lora_B.weight": (4, 6),
        "base_model.model.experts.lora_A.weight": (6, 4),
        "base_model.model.experts.lora_B.weight": (5, 6),
    }
    problems = group(shapes).problems
    assert len(problems) == 2
    assert all("target_parameters" in problem.remedy for problem in problems)


@pytest.mark.parametrize(
    ("a", "b", "remedy"),
    [
        ((6, 4), (4, 8), "transposed"),
        ((4, 6), (8, 5), "ranks differ"),
        ((4, 6), (0,), "gathered"),
        ((24,), (8, 4), "gathered"),
        ((2, 4, 6), (2, 4, 8), "stacked"),
    ],
)
def test_shapes_that_do_not_fit_are_a_problem(a: tuple[int, ...], b: tuple[int, ...], remedy: str) -> None:
    problem = the_problem({"x.lora_a": a, "x.lora_b": b})
    assert remedy in problem.remedy
    assert str(a) in problem.found
    assert str(b) in problem.found


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4, 6), (3, 8, 4)), ((3, 6, 4), (2, 4, 8)), ((6, 4), (4, 8)), ((3, 6, 4), (3, 5, 8))]
)
def test_expert_shapes_that_do_not_fit_are_a_problem(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert "(experts, in, rank)" in the_problem({"e.w_lora_a": a, "e.w_lora_b": b}).expected


def test_a_grouped_convolution_is_a_problem() -> None:
    peft = "base_model.model.x."
    problem = the_problem({f"{peft}lora_A.weight": (4, 2, 3, 3), f"{peft}lora_B.weight": (8, 2, 1, 1)})
    assert "grouped" in problem.remedy


@pytest.mark.parametrize("vector", ["lora_magnitude_vector", "lora_B.bias"])
def test_a_vector_of_another_width_is_a_problem(vector: str) -> None:
    peft = "base_model.model.x."
    problem = the_problem({f"{peft}lora_A.weight": (4, 6), f"{peft}lora_B.weight": (8, 4), f"{peft}{vector}": (7,)})
    assert (problem.where, problem.found) == (f"{peft}{vector}", "shape (7,)")


def test_all_problems_are_reported_at_once() -> None:
    shapes: Shapes = {"x.lora_a": (4, 6), "y.lora_b": (8, 4), "z.lora_a": (4, 6), "z.lora_b": (8, 5)}
    assert len(group(shapes).problems) == 3
