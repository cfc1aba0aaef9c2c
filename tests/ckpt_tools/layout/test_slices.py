"""Which part of a tensor a rank holds, against the definition: walk down the device matrix, cutting as it says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_cases import layouts, slice_by_definition

from ckpt_tools.layout.model import Layout
from ckpt_tools.layout.slices import cell_region, cut_evenly, cut_of
from surgery.errors import MismatchError


def regions_of(layout: Layout, shape: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    cut = cut_of(layout, len(shape), "w")
    edges = cut_evenly(shape, cut.parts, layout.split_shape, "w")
    return [cell_region(edges, cell) for cell in cut.cells]


@given(data=st.data())
def test_every_rank_holds_what_the_definition_gives_it(data: st.DataObject) -> None:
    layout, shape = data.draw(layouts())
    whole = np.arange(math.prod(shape)).reshape(shape)
    for rank, region in enumerate(regions_of(layout, shape)):
        found = whole[tuple(slice(*span) for span in region)]
        assert np.array_equal(found, slice_by_definition(whole, layout, rank))


@given(data=st.data())
def test_the_cells_of_all_ranks_cover_the_tensor(data: st.DataObject) -> None:
    layout, shape = data.draw(layouts())
    cut = cut_of(layout, len(shape), "w")
    holders = cut.holders
    assert list(holders) == list(itertools.product(*map(range, cut.parts)))
    assert sorted(rank for ranks in holders.values() for rank in ranks) == list(range(layout.devices))
    assert len({len(ranks) for ranks in holders.values()}) == 1, "each cell is held as often"


def test_a_two_dimensional_cut_counts_devices_row_by_row() -> None:
    layout = Layout((2, 3), ((1,), (0,)))
    assert cut_of(layout, 2, "w").cells == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    assert regions_of(layout, (4, 6))[4] == ((2, 4), (2, 4))


def test_an_axis_cut_by_several_device_axes_is_cut_by_the_first_of_them_first() -> None:
    assert [cell for (cell,) in cut_of(Layout((2, 2, 2), ((2, 0),)), 1, "w").cells] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert [cell for (cell,) in cut_of(Layout((2, 2, 2), ((0, 2),)), 1, "w").cells] == [0, 2, 0, 2, 1, 3, 1, 3]


@pytest.mark.parametrize(
    ("matrix", "tensor_map", "step", "size", "cells"),
    [
        ((4, 2), ((0,), ()), 2, 4, [0, 4, 1, 5, 2, 6, 3, 7]),
        ((4, 2), ((0,), ()), 2, 2, [0, 2, 1, 3, 0, 2, 1, 3]),
        ((4, 2), ((0,), ()), 2, -1, [0, 4, 1, 5, 2, 6, 3, 7]),
        ((2, 2, 2), ((1,), ()), 1, 2, [0, 1, 2, 3, 0, 1, 2, 3]),
        ((2, 2, 2), ((1,), ()), 1, 4, [0, 1, 4, 5, 2, 3, 6, 7]),
        ((8,), ((), ()), 1, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ((8,), ((), ()), 1, 2, [0, 1, 0, 1, 0, 1, 0, 1]),
        ((2, 4), ((), (0,)), 4, 2, [0, 0, 0, 0, 1, 1, 1, 1]),
        ((2, 4), ((), (0,)), 0, -1, [0, 0, 0, 0, 0, 0, 0, 0]),
        ((2, 4), ((0,), ()), 4, 0, [0, 1, 2, 3, 0, 1, 2, 3]),
    ],
)
def test_optimizer_shards_cut_the_first_axis_further(
    matrix: tuple[int, ...], tensor_map: tuple[tuple[int, ...], ...], step: int, size: int, cells: list[int]
) -> None:
    cut = cut_of(Layout(matrix, tensor_map, step, size), 2, "w")
    assert [cell[0] for cell in cut.cells] == cells


@pytest.mark.parametrize(
    ("layout", "axes", "message"),
    [
        (Layout((2,), ((0,), ())), 3, "w: expected 2, as in the strategy, found 3 axes"),
        (Layout((4,), ((0,),), 1, 2), 1, "shards that its no replicas can hold"),
        (Layout((2, 2), ((0,), ()), 2, 8), 2, "shards that its 2 replicas can hold, found 8 optimizer shards"),
        (Layout((6,), ((),), 1, 4), 1, "shards that its 6 replicas can hold, found 4 optimizer shards"),
        (Layout((2, 2), ((0,), ()), 1, 2), 2, "expected 2, by its device matrix, found opt_weight_shard_step 1"),
        (Layout((2,), (), 1, 2), 0, "a scalar"),
    ],
)
def test_a_layout_that_cannot_be_the_tensors_is_refused(layout: Layout, axes: int, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        cut_of(layout, axes, "w")


def test_a_layout_that_cuts_nothing_is_one_for_any_number_of_axes() -> None:
    assert cut_of(Layout((2, 2), ((),)), 0, "w").parts == ()
    assert cut_of(Layout((2, 2), ((), ())), 1, "w").cells == ((0,),) * 4


def test_uneven_parts_are_cut_where_the_strategy_says() -> None:
    layout = Layout((3,), ((0,), ()), split_shape=(5, 3, 2))
    assert regions_of(layout, (10, 4)) == [((0, 5), (0, 4)), ((5, 8), (0, 4)), ((8, 10), (0, 4))]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout((3,), ((0,),)), "expected one that 3 ranks can share evenly, found axis 0 of length 10"),
        (Layout((3,), ((0,),), split_shape=(5, 3, 3)), "3 lengths that add up to the axis' length 10"),
        (Layout((3,), ((0,),), split_shape=(5, 5)), "3 lengths that add up to the axis' length 10"),
    ],
)
def test_an_axis_that_cannot_be_cut_so_is_refused(layout: Layout, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        regions_of(layout, (10,))
