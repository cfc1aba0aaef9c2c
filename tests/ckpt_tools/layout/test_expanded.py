"""Layouts as the compiler's JSON expands them: told apart by the shapes, or refused."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from compiled_layouts import compiled_json, without_interleaving
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import layouts, slice_by_definition
from soak import examples

from ckpt_tools.layout import Layout, read_strategy
from ckpt_tools.layout.expanded import _groupings, folded_slice, folded_whole
from ckpt_tools.layout.slices import cut_of, regions_of
from surgery.errors import MismatchError


def read(folder: Path, layout: Layout, shape: tuple[int, ...], interleaved: bool = False) -> Layout:
    path = folder / "strategy.json"
    path.write_bytes(compiled_json({"w": (layout, shape)}, interleaved))
    return read_strategy(path).stages[0]["w"]


@settings(max_examples=examples(400), deadline=None)
@given(case=layouts(), interleaved=st.booleans(), more=st.sampled_from([1, 5, 7]))
def test_what_is_read_is_what_was_meant_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[Layout, tuple[int, ...]],
    interleaved: bool,
    more: int,
) -> None:
    layout, shape = case
    if interleaved:  # an axis behind all others, which cuts an axis of the tensor, or none
        shifted = tuple(tuple(axis + 1 for axis in cuts) for cuts in layout.tensor_map)
        layout = Layout((*layout.device_matrix, 2), ((*shifted[0], 0), *shifted[1:]), layout.shard_step)
        layout = Layout(layout.device_matrix, layout.tensor_map, case[0].shard_step, case[0].shard_size)
    shape = tuple(length * more**axis for axis, length in enumerate(shape))
    meant = without_interleaving(layout) if interleaved else layout
    found = read(tmp_path_factory.getbasetemp(), layout, shape, interleaved)
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    slices = [slice_by_definition(whole, meant, rank) for rank in range(meant.devices)]
    try:
        _, regions = regions_of(found, shape)
    except MismatchError as error:
        assert "axes" in str(error)  # noqa: PT017 - whatever else is refused is a bug
    else:
        for part, region in zip(slices, regions, strict=True):
            taken = whole if region is None else whole[tuple(slice(start, stop) for start, stop in region)]
            assert np.array_equal(taken, part)
    try:
        cut = cut_of(folded_slice(found, slices[0].shape), len(shape), "w")
    except MismatchError as error:
        assert "axes" in str(error)  # noqa: PT017
    else:
        assert tuple(size * count for size, count in zip(slices[0].shape, cut.parts, strict=True)) == shape
        assert cut.cells == cut_of(meant, len(shape), "w").cells


def test_the_compilers_own_example_is_told_apart(tmp_path: Path) -> None:
    """(512, 1024) on 8 x 2 x 4 devices, from the comment in `InitFromExtendVector`."""
    found = read(tmp_path, Layout((8, 2, 4), ((2,), (1, 0))), (512, 1024))
    assert (found.tensor_map, found.expanded_shape) == (((2,), (1,), (0,)), (512, 2, 512))
    assert folded_whole(found, (512, 1024)).tensor_map == ((2,), (1, 0))
    assert folded_slice(found, (64, 128)).tensor_map == ((2,), (1, 0))


@pytest.mark.parametrize(
    ("tensor_map", "means"),
    [(((1, 0), (2,)), ((0,), (1,))), (((0, 1), (2,)), ((0,), (1,))), (((2, 0, 1), ()), ((1, 0), ()))],
)
def test_an_interleaved_axis_cuts_nothing_wherever_it_stands(
    tmp_path: Path, tensor_map: tuple[tuple[int, ...], ...], means: tuple[tuple[int, ...], ...]
) -> None:
    found = read(tmp_path, Layout((4, 2, 2), tensor_map), (16, 24), interleaved=True)
    assert found.device_matrix == (4, 2)
    assert folded_whole(found, (16, 24)).tensor_map == means


def test_a_map_that_may_mean_two_cuts_is_refused_and_not_guessed(tmp_path: Path) -> None:
    """(2, 2, 2) may be (4, 2), cut by the first two device axes, or (2, 4), cut by the last two."""
    found = read(tmp_path, Layout((2, 2, 2), ((2, 1), (0,))), (4, 2))
    assert regions_of(found, (4, 2))[0] == (4, 2)
    with pytest.raises(MismatchError, match="expected 3, as in the strategy, found 2 axes"):
        cut_of(folded_slice(found, (1, 1)), 2, "w")


def test_a_map_of_an_axis_for_an_axis_needs_no_shape(tmp_path: Path) -> None:
    assert read(tmp_path, Layout((2, 4), ((1,), ())), (6, 5)) == Layout((2, 4), ((1,), ()))


def groupings_by_definition(
    lengths: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...], *, is_slice: bool, with_shards: bool
) -> list[tuple[int, ...]]:
    """All ways, one tried after the other."""
    found = []
    for inner in combinations(range(1, len(lengths)), len(shape) - 1):
        groups = list(pairwise((0, *inner, len(lengths))))
        if any(lengths[axis] != sizes[axis] for start, stop in groups for axis in range(start, stop - 1)):
            continue
        for axis, (start, stop) in enumerate(groups):
            whole, part = math.prod(lengths[start:stop]), math.prod(sizes[start:stop]) if is_slice else 1
            remaining = whole / part / shape[axis] if shape[axis] else 0.0
            if not (remaining >= 1 and remaining.is_integer() if with_shards and axis == 0 else remaining == 1):
                break
        else:
            found.append((*inner, len(lengths)))
    return found


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data())
def test_the_ways_to_group_axes_are_all_ways_up_to_the_second(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=6)))
    lengths = tuple(data.draw(st.sampled_from([size, size, 2 * size])) for size in sizes)
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=len(sizes))))
    is_slice = data.draw(st.booleans())
    with_shards = is_slice and data.draw(st.booleans())
    found = _groupings(lengths, sizes, shape, sizes if is_slice else (), with_shards=with_shards)
    expected = groupings_by_definition(lengths, sizes, shape, is_slice=is_slice, with_shards=with_shards)
    assert len(found) == min(len(expected), 2)
    assert set(found) <= set(expected)


@pytest.mark.parametrize("last", [1, 2])
def test_axes_of_one_element_are_grouped_in_bounded_time(last: int) -> None:
    """There are C(31, 15) ways, which no file may make anybody try."""
    layout = Layout((1,), ((),) * 32, expanded_shape=(1,) * 32)
    assert folded_whole(layout, (*(1,) * 15, last)) == layout
