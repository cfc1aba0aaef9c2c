"""Which way round an update goes on a weight, and what is said where it does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from ckpt_tools.merging.fitting import Fit, fit_pair, term_of
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.folding import Merged
from ckpt_tools.tensors.views import Constant, reshape
from surgery.errors import Problem
from surgery.grouping import LoraPair


def pair(kind: str, rank: int = 2) -> LoraPair:
    return LoraPair("layers.0.q", "peft", kind, rank, "layers.0.q.lora_A.weight", "layers.0.q.lora_B.weight")


FITS = [
    ("linear", (2, 5), (3, 2), (3, 5), Fit((3, 5), False)),
    ("linear", (2, 5), (3, 2), (5, 3), Fit((5, 3), True)),
    ("linear", (2, 4), (4, 2), (4, 4), Fit((4, 4), False, is_square=True)),
    ("embedding", (2, 7), (4, 2), (7, 4), Fit((7, 4), True)),
    ("embedding", (2, 4), (4, 2), (4, 4), Fit((4, 4), True)),
    ("conv", (2, 3, 5, 5), (4, 2, 1, 1), (4, 3, 5, 5), Fit((4, 75), False)),
    ("conv", (2, 3, 7), (4, 2, 1), (4, 3, 7), Fit((4, 21), False)),
    ("expert", (6, 4, 2), (6, 2, 5), (6, 4, 5), Fit((6, 4, 5), False)),
    ("expert", (6, 4, 2), (6, 2, 4), (6, 4, 4), Fit((6, 4, 4), False)),
]
Shape = tuple[int, ...]


@pytest.mark.parametrize(("kind", "a", "b", "weight", "fit"), FITS)
def test_an_update_of_each_kind_fits_its_weight(kind: str, a: Shape, b: Shape, weight: Shape, fit: Fit) -> None:
    assert fit_pair(pair(kind), a, b, weight) == fit


@pytest.mark.parametrize(
    ("kind", "a", "b", "weight", "wanted"),
    [
        ("linear", (2, 5), (3, 2), (3, 6), "(3, 5)"),
        ("linear", (2, 5), (3, 2), (15,), "(3, 5)"),
        ("linear", (2, 5), (3, 2), (3, 5, 1), "(3, 5)"),
        ("linear", (2, 4), (4, 2), (8, 4), "(4, 4)"),
        ("embedding", (2, 7), (4, 2), (4, 7), "(7, 4)"),
        ("conv", (2, 3, 5, 5), (4, 2, 1, 1), (3, 4, 5, 5), "(4, 3, 5, 5)"),
        ("conv", (2, 3, 5, 5), (4, 2, 1, 1), (4, 75), "(4, 3, 5, 5)"),
        ("expert", (6, 4, 2), (6, 2, 5), (6, 5, 4), "(6, 4, 5)"),
        ("expert", (6, 4, 2), (6, 2, 5), (5, 4, 5), "(6, 4, 5)"),
    ],
)
def test_a_misfit_says_all_shapes_and_the_one_that_would_do(
    kind: str, a: Shape, b: Shape, weight: Shape, wanted: str
) -> None:
    problem = fit_pair(pair(kind), a, b, weight)
    assert isinstance(problem, Problem)
    assert problem.where == "layers.0.q"
    assert problem.expected == f"a weight of shape {wanted}"
    assert all(str(shape) in problem.found for shape in (a, b, weight))


def test_a_misfit_of_an_update_without_a_layer_names_its_key() -> None:
    problem = fit_pair(LoraPair("", "mindpet", "linear", 2, "lora_A", "lora_B"), (2, 5), (3, 2), (1, 1))
    assert isinstance(problem, Problem)
    assert problem.where == "lora_A"


def reference(kind: str, a: np.ndarray, b: np.ndarray, transposed: bool) -> np.ndarray:
    """The update as PEFT and MindFormers define it."""
    if kind == "expert":
        return np.einsum("eir,ero->eio", a, b)
    if kind == "conv":
        return np.einsum("rikl,or->oikl", a, b[:, :, 0, 0])
    return (b @ a).T if transposed else b @ a


# The weights around a square one tell which way round it is.
TURNED = ("linear", (2, 4), (4, 2), (4, 4), Fit((4, 4), True, is_square=True))


@pytest.mark.parametrize(
    ("kind", "a", "b", "weight", "fit"), [*(case for case in FITS if case[1] != (2, 3, 7)), TURNED]
)
def test_the_term_adds_the_product_the_right_way_round(kind: str, a: Shape, b: Shape, weight: Shape, fit: Fit) -> None:
    rng = np.random.default_rng(0)
    factors = [rng.integers(-4, 5, shape).astype(np.float32) for shape in (a, b)]
    lazy = [Constant(factor, dtype_of(factor)) for factor in factors]
    zero = Constant(np.zeros(weight, np.float32), BY_NAME["fp32"])
    term = term_of(pair(kind), *lazy, 0.5, fit)
    found = Merged(reshape(zero, fit.matrix_shape), (term,), BY_NAME["fp32"]).read_all().reshape(weight)
    assert np.array_equal(found, 0.5 * reference(kind, *factors, fit.transposed))


def test_a_conv_of_one_axis_adds_its_product_too() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (2, 3, 7)).astype(np.float32), rng.integers(-4, 5, (4, 2, 1)).astype(np.float32)
    fit = fit_pair(pair("conv"), a.shape, b.shape, (4, 3, 7))
    assert isinstance(fit, Fit)
    term = term_of(pair("conv"), Constant(a, dtype_of(a)), Constant(b, dtype_of(b)), 1.0, fit)
    zero = Constant(np.zeros(fit.matrix_shape, np.float32), BY_NAME["fp32"])
    found = Merged(zero, (term,), BY_NAME["fp32"]).read_all().reshape(4, 3, 7)
    assert np.array_equal(found, np.einsum("rik,or->oik", a, b[:, :, 0]))


def test_factors_that_were_saved_transposed_are_told_as_such() -> None:
    problem = fit_pair(pair("linear", 4), (4, 2), (2, 4), (4, 4))
    assert isinstance(problem, Problem)
    assert problem.remedy == "Both A and B look transposed: write them transposed"
