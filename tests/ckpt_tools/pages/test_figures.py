"""Drawings by themselves: layouts, spectra, heatmaps, places."""

from __future__ import annotations

import re

import pytest

from ckpt_tools.layout import Layout
from ckpt_tools.pages import Spectrum, layout_figure, spectra_blocks
from ckpt_tools.pages.heatmaps import heatmap
from ckpt_tools.pages.places import Place, place_of
from surgery.errors import MismatchError


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.attention.wq.weight", Place("model.layers", 3, "attention.wq")),
        ("h.11.attn.c_attn.weight", Place("h", 11, "attn.c_attn")),
        ("model.layers.0.mlp.experts.17.w1.weight", Place("model.layers", 0, "mlp.experts.*.w1")),
        ("0.weight", Place("", 0, "weight")),
        ("lm_head.weight", None),
        ("model.layers.³.wq.weight", None),
        ("", None),
    ],
)
def test_a_name_says_where_a_tensor_is(name: str, place: Place | None) -> None:
    assert place_of(name) == place


def test_each_slice_of_a_layout_is_drawn_with_the_ranks_that_hold_it() -> None:
    layout = Layout((2, 2), ((1,), (0,)))
    figure = layout_figure("f", "a weight", layout, (8, 4), first_rank=4)
    assert re.findall(r'data-ranks="([^"]+)"', figure.drawing.body) == ["4", "5", "6", "7"]
    assert "Rank 6: [4:8, 0:2]." in figure.description


def test_ranks_with_the_same_slice_share_it() -> None:
    figure = layout_figure("f", "a weight", Layout((2, 4), ((0,), ())), (8, 4))
    assert re.findall(r'data-ranks="([^"]+)"', figure.drawing.body) == ["0,4", "1,5", "2,6", "3,7"]
    assert "2 ranks" in figure.note


@pytest.mark.parametrize("shape", [(), (8,), (4, 8, 2), (2, 2, 2, 2)])
def test_tensors_of_any_number_of_axes_are_drawn(shape: tuple[int, ...]) -> None:
    layout = Layout((2,), ((0,), *((),) * (len(shape) - 1)) if shape else ())
    assert layout_figure("f", "a tensor", layout, shape).drawing.body


def test_a_thousand_devices_give_a_small_drawing_that_says_what_it_lacks() -> None:
    figure = layout_figure("f", "a weight", Layout((32, 32), ((1, 0), ())), (2048, 4))
    assert len(figure.drawing.body) < 200_000
    assert "of 1024" in figure.note


def test_a_layout_of_another_tensor_is_an_error() -> None:
    with pytest.raises(MismatchError):
        layout_figure("f", "a weight", Layout((3,), ((0,), ())), (8, 4))


def test_spectra_are_lines_by_module_a_heatmap_and_a_table() -> None:
    spectra = [
        Spectrum(f"model.layers.{layer}.{module}.weight", (2.0, 1.0, 0.0), 1.5) for layer in range(3) for module in "qv"
    ]
    *figures, table = spectra_blocks([*spectra, Spectrum("model.layers.0.zero.weight", (0.0, 0.0), 0.0)])
    assert [figure.key for figure in figures] == ["spectra-ranks", "spectra-lines"]
    assert len(table.rows) == 7
    assert figures[0].drawing.body.count("data-value") == 7


def test_experts_share_a_cell_that_shows_the_largest() -> None:
    numbers = [(f"layers.{layer}.experts.{n}.w1.weight", float(n)) for layer in range(2) for n in range(4)]
    figure = heatmap("f", "t", numbers, str)
    assert figure is not None
    assert re.findall(r'data-value="([^"]+)"', figure.drawing.body) == ["3.0", "3.0"]
    assert "the largest" in figure.note


def test_numbers_that_are_not_there_or_not_finite_are_left_out() -> None:
    numbers = [("layers.0.a", None), ("layers.1.a", float("nan")), ("layers.2.a", float("inf")), ("layers.3.a", 1.0)]
    assert heatmap("f", "t", numbers, str) is None


def test_zeros_alone_are_drawn() -> None:
    assert heatmap("f", "t", [("layers.0.a", 0.0), ("layers.1.a", 0.0)], str) is not None
