"""Random layouts, and what they mean by the definition."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from ckpt_tools.layout.model import Layout


def coordinates(layout: Layout, rank: int) -> list[int]:
    """Where a rank stands in the device matrix, by axes from the left."""
    return [int(index) for index in np.unravel_index(rank % layout.devices, layout.device_matrix)]


def slice_by_definition(whole: np.ndarray, layout: Layout, rank: int) -> np.ndarray:
    """What a rank holds of a tensor: each axis is cut by its device axes in turn, axis 0 by optimizer shards too."""
    place = coordinates(layout, rank)
    count = len(layout.device_matrix)
    found = whole
    for axis, cuts in enumerate(layout.tensor_map):
        for position, device_axis in enumerate(cuts):
            size, index = layout.device_matrix[count - 1 - device_axis], place[count - 1 - device_axis]
            if axis == 0 and layout.split_shape:
                assert position == 0
                found = np.split(found, np.cumsum(layout.split_shape)[:-1])[index]
            else:
                found = np.split(found, size, axis)[index]
    if layout.shard_step and layout.shard_size:
        taken = {axis for cuts in layout.tensor_map for axis in cuts}
        free = [axis for axis in range(count) if axis not in taken]  # the rightmost first
        left = layout.shard_size
        if left == -1:
            left = math.prod(layout.device_matrix[count - 1 - axis] for axis in free)
        # The part's number, its lowest digit from the rightmost axis.
        number, weight = 0, 1
        for axis in free:
            size = min(left // weight, layout.device_matrix[count - 1 - axis])
            number += weight * (place[count - 1 - axis] % size)
            weight *= size
        assert weight == left
        found = np.split(found, left)[number]
    return found


@st.composite
def layouts(draw: st.DrawFn, axes: int | None = None, devices: int | None = None) -> tuple[Layout, tuple[int, ...]]:
    """A layout, and the shape of a tensor that it fits; for so many axes and devices, or any."""
    matrix = draw(_matrices(devices))
    count = len(matrix)
    axes = axes or draw(st.integers(1, 3))
    free = draw(st.permutations(range(count)))
    tensor_map: list[tuple[int, ...]] = []
    for _ in range(axes):
        taken = draw(st.integers(0, min(2, len(free))))
        tensor_map.append(tuple(free[:taken]))
        free = free[taken:]
    shape = [math.prod(matrix[count - 1 - axis] for axis in cuts) * draw(st.integers(1, 3)) for cuts in tensor_map]
    step = size = 0
    repeated = sorted(axis for axis in free if matrix[count - 1 - axis] > 1)
    if repeated and draw(st.booleans()):
        step = math.prod(matrix[count - repeated[0] :])
        size, parts = draw(_shard_sizes([matrix[count - 1 - axis] for axis in repeated]))
        shape[0] *= parts
    return Layout(matrix, tuple(tensor_map), step, size), tuple(shape)


def _matrices(devices: int | None) -> st.SearchStrategy[tuple[int, ...]]:
    if devices is None:
        return st.lists(st.sampled_from([1, 2, 2, 3, 4]), min_size=1, max_size=4).map(tuple)
    return st.sampled_from(sorted(set(_factorisations(devices))))


def _factorisations(number: int) -> list[tuple[int, ...]]:
    found = [(number,), (1, number)]
    for first in range(2, number):
        if number % first == 0:
            found += [(first, *rest) for rest in _factorisations(number // first)]
    return found


@st.composite
def _shard_sizes(draw: st.DrawFn, replicas: list[int]) -> tuple[int, int]:
    """`opt_weight_shard_size`, and how many parts it means."""
    everything = math.prod(replicas)
    fitting = [size for size in range(1, everything + 1) if _fits(size, replicas)]
    size = draw(st.sampled_from([-1, *fitting]))
    return size, everything if size == -1 else size


def _fits(size: int, replicas: list[int]) -> bool:
    for count in replicas:
        if size <= count:
            return count % size == 0
        if size % count:
            return False
        size //= count
    return size == 1
