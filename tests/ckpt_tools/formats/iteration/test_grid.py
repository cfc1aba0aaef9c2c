"""Offsets of chunks in any of their meanings, and layouts, give the places that the chunks were cut from."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iteration_folders import MEANINGS, cell_region, cells

from ckpt_tools.formats.iteration.grid import DeviceLayout, cells_of, find_edges, part_region, place_chunks
from ckpt_tools.tensors.lazy import region_shape


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and in how many equal parts its axes are cut."""
    parts = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    return tuple(count * draw(st.integers(1, 5)) for count in parts), parts


@settings(deadline=None)
@given(grids(), st.sampled_from(sorted(MEANINGS)), st.randoms())
def test_chunks_are_placed_whatever_their_offsets_mean(grid, meaning, chance) -> None:  # type: ignore[no-untyped-def]
    shape, parts = grid
    local = tuple(size // count for size, count in zip(shape, parts, strict=True))
    order = cells(parts)
    chance.shuffle(order)
    offsets = [tuple(MEANINGS[meaning](cell, parts, local)) for cell in order]
    placed = place_chunks(shape, offsets, [local] * len(order))
    assert placed is not None
    assert placed[0] == [cell_region(shape, parts, cell) for cell in order]
    assert placed[1] == tuple(tuple(range(0, size + 1, length)) for size, length in zip(shape, local, strict=True))


@settings(deadline=None)
@given(grids(), st.sampled_from(sorted(MEANINGS)), st.data())
def test_chunks_of_which_one_is_missing_or_doubled_are_not_placed(grid, meaning, data) -> None:  # type: ignore[no-untyped-def]
    shape, parts = grid
    local = tuple(size // count for size, count in zip(shape, parts, strict=True))
    offsets = [tuple(MEANINGS[meaning](cell, parts, local)) for cell in cells(parts)]
    wrong = data.draw(st.integers(0, len(offsets) - 1))
    doubled = [*offsets, offsets[wrong]]
    assert place_chunks(shape, doubled, [local] * len(doubled)) is None
    del offsets[wrong]
    assert place_chunks(shape, offsets, [local] * len(offsets)) is None


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=3))
def test_uneven_chunks_are_placed_by_element(lengths: list[list[int]]) -> None:
    edges = tuple(tuple(itertools.accumulate(axis, initial=0)) for axis in lengths)
    shape = tuple(cuts[-1] for cuts in edges)
    regions = list(itertools.product(*map(itertools.pairwise, edges)))
    placed = place_chunks(
        shape, [tuple(low for low, _ in one) for one in regions], [region_shape(one) for one in regions]
    )
    assert placed == (regions, edges)


@pytest.mark.parametrize(
    ("shape", "offsets", "locals_"),
    [
        ((4,), [(0,), (2,)], [(2,), (3,)]),  # beyond the end
        ((4,), [(0,), (1,)], [(2,), (3,)]),  # an overlap
        ((4,), [(0,), (3,)], [(2,), (1,)]),  # a gap
        ((2, 2), [(0, 0), (1, 0), (1, 1)], [(1, 2), (1, 1), (1, 1)]),  # a covering that is no grid
        ((4, 4), [(0,), (7,)], [(2, 4), (2, 4)]),  # no such slice
        ((4, 4), [(0, 0, 0), (0, 0, 1)], [(2, 4), (2, 4)]),  # too many axes
        ((3, 4), [(0,), (1,)], [(1, 4), (1, 4)]),  # two thirds
        ((), [(0,), (1,)], [(), ()]),
        ((10**9, 10**9), [(5 * 10**8,)], [(10**9, 10**9)]),
    ],
)
def test_chunks_that_do_not_cover_exactly_once_are_not_placed(
    shape: tuple[int, ...], offsets: list[tuple[int, ...]], locals_: list[tuple[int, ...]]
) -> None:
    assert place_chunks(shape, offsets, locals_) is None


@pytest.mark.parametrize("offset", [(), (0,), (0, 0)])
def test_a_single_chunk_may_say_its_origin_with_any_number_of_zeros(offset: tuple[int, ...]) -> None:
    assert place_chunks((3, 4), [offset], [(3, 4)]) == ([((0, 3), (0, 4))], ((0, 3), (0, 4)))
    assert place_chunks((), [offset], [()]) == ([()], ())


def test_a_tensor_without_elements_is_covered_by_any_number_of_chunks() -> None:
    assert place_chunks((0, 4), [(0,), (1,)], [(0, 2), (0, 2)]) == (
        [((0, 0), (0, 2)), ((0, 0), (2, 4))],
        ((0, 0), (0, 2, 4)),
    )
    assert place_chunks((0,), [(0,), (1,)], [(0,), (0,)]) == ([((0, 0),), ((0, 0),)], ((0, 0),))


def test_the_edges_of_no_regions_are_none() -> None:
    assert find_edges((4,), []) is None
    assert find_edges((), []) is None


@st.composite
def layouts_and_shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """A device matrix, a tensor map that uses each of its axes once at most, and a shape that it cuts evenly."""
    matrix = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    free = draw(st.permutations(range(len(matrix))))
    tensor_map, shape = [], []
    for _ in range(draw(st.integers(0, 3))):
        count = draw(st.integers(0, len(free)))
        cuts, free = tuple(free[:count]), free[count:]
        tensor_map.append(cuts)
        shape.append(math.prod(matrix[len(matrix) - 1 - axis] for axis in cuts) * draw(st.integers(1, 3)))
    return matrix, tuple(tensor_map), tuple(shape)


@settings(deadline=None)
@given(layouts_and_shapes())
def test_a_layout_puts_each_rank_where_the_definition_does(case) -> None:  # type: ignore[no-untyped-def]
    matrix, tensor_map, shape = case
    ranks = tuple(range(100, 100 + math.prod(matrix)))
    layout = DeviceLayout(matrix, tensor_map, ranks)
    whole = np.arange(math.prod(shape)).reshape(shape)
    places = cells_of(layout)
    assert set(places) == set(ranks)
    for rank, cell in places.items():
        expected = whole
        coordinates = np.unravel_index(rank - 100, matrix)
        for axis, cuts in enumerate(tensor_map):
            for device_axis in cuts:
                position = len(matrix) - 1 - device_axis
                expected = np.split(expected, matrix[position], axis)[coordinates[position]]
        region = part_region(shape, layout.parts, cell)
        assert region is not None
        assert np.array_equal(whole[tuple(slice(*axis) for axis in region)], expected)


def test_parts_that_are_not_equal_have_no_place() -> None:
    assert part_region((3,), (2,), (1,)) is None
