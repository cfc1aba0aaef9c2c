"""A fingerprint costs little and tells bases apart; a digest covers every byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import sliced, stored

from ckpt_tools import fingerprint as module
from ckpt_tools.fingerprint import content_digest, fingerprint, same_values, sample_regions, target_fingerprint
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics, region_shape
from ckpt_tools.tensors.views import Constant, Reshaped

SHAPES = st.lists(st.integers(1, 40), max_size=4).map(tuple)


def lazy(array: np.ndarray) -> Constant:
    return Constant(np.asarray(array), dtype_of(np.asarray(array)))


@settings(deadline=None)
@given(SHAPES)
def test_windows_lie_within_the_tensor_and_hold_its_first_and_its_last_element(shape: tuple[int, ...]) -> None:
    places = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    regions = list(sample_regions(shape))
    assert 1 <= len(regions) <= 4
    assert len(set(regions)) == len(regions)
    seen = np.concatenate([sliced(places, region).reshape(-1) for region in regions])
    assert {0, places.size - 1} <= set(seen.tolist())
    assert all(np.prod(region_shape(region), dtype=int) <= 16 for region in regions)


def test_windows_stand_where_the_documentation_says() -> None:
    assert list(sample_regions((10, 100))) == [
        ((0, 1), (0, 16)),
        ((3, 4), (28, 44)),
        ((6, 7), (56, 72)),
        ((9, 10), (84, 100)),
    ]
    assert list(sample_regions((100,))) == [((0, 16),), ((28, 44),), ((56, 72),), ((84, 100),)]
    assert list(sample_regions((7,))) == [((0, 7),)]
    assert list(sample_regions(())) == [()]
    assert list(sample_regions((2, 3, 4))) == [
        ((0, 1), (0, 1), (0, 4)),
        ((0, 1), (1, 2), (0, 4)),
        ((1, 2), (0, 1), (0, 4)),
        ((1, 2), (2, 3), (0, 4)),
    ]
    assert list(sample_regions((0, 3))) == list(sample_regions((3, 0))) == []


def test_rows_beyond_32_bits_are_counted() -> None:
    (*_, last) = sample_regions((2**20, 2**20, 4))
    assert last == ((2**20 - 1, 2**20), (2**20 - 1, 2**20), (0, 4))


BASE: Mapping[str, np.ndarray] = {
    "matrix": np.arange(5000, dtype=np.float32).reshape(50, 100),
    "vector": np.arange(100, dtype=np.float16),
    "scalar": np.array(3.0),
    "empty": np.zeros((0, 3), np.float32),
}


def tensors(**changes: np.ndarray) -> dict[str, LazyTensor]:
    return {name: lazy(array) for name, array in {**BASE, **changes}.items()}


def test_a_fingerprint_does_not_depend_on_order_or_place(tmp_path: Path) -> None:
    on_disk = {name: stored(tmp_path / name, array, cuts=(17, 300)) for name, array in BASE.items()}
    assert fingerprint(on_disk) == fingerprint(tensors()) == fingerprint(dict(reversed(tensors().items())))
    assert fingerprint(tensors()).startswith("pet-fp1:")
    assert len(fingerprint(tensors())) == len("pet-fp1:") + 64


def with_value(name: str, index: tuple[int, ...]) -> dict[str, LazyTensor]:
    array = BASE[name].copy()
    array[index] += 1
    return tensors(**{name: array})


def test_a_fingerprint_changes_with_names_types_shapes_and_values_in_its_windows() -> None:
    others = [
        tensors(),
        tensors(more=np.zeros(1)),
        {("other" if name == "vector" else name): tensor for name, tensor in tensors().items()},
        tensors(vector=BASE["vector"].astype(np.float32)),
        tensors(vector=BASE["vector"].view(np.int16)),
        tensors(vector=BASE["vector"].reshape(1, 100)),
        tensors(empty=np.zeros((3, 0), np.float32)),
        with_value("matrix", (0, 0)),
        with_value("matrix", (49, 99)),
        with_value("matrix", (16, 30)),
        with_value("vector", (99,)),
        with_value("scalar", ()),
    ]
    assert len({fingerprint(other) for other in others}) == len(others)


def test_a_fingerprint_does_not_look_between_its_windows() -> None:
    assert fingerprint(with_value("matrix", (25, 5))) == fingerprint(tensors())


class Large(LazyTensor):
    """More elements than any machine holds."""

    def __init__(self) -> None:
        self.dtype, self.shape, self.read_elements = BY_NAME["fp32"], (2**30, 2**20), 0

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        self.read_elements += int(np.prod(region_shape(region)))
        return np.zeros(region_shape(region), np.float32)


def test_a_fingerprint_of_a_large_tensor_reads_64_elements() -> None:
    large = Large()
    fingerprint({"x": large})
    assert large.read_elements == 64


def test_a_digest_changes_with_every_element_and_not_with_the_order() -> None:
    digest, nonfinite = content_digest(tensors())
    assert digest.startswith("blake3:")
    assert nonfinite == []
    assert content_digest(dict(reversed(tensors().items()))) == (digest, [])
    others = [with_value("matrix", (row, column)) for row in (0, 25, 49) for column in (0, 5, 99)]
    others.append(tensors(matrix=BASE["matrix"].reshape(100, 50)))
    assert len({digest, *(content_digest(other)[0] for other in others)}) == len(others) + 1


def test_a_digest_does_not_depend_on_how_much_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_digest(tensors())
    monkeypatch.setattr(module, "_BAND_ELEMENTS", 30)
    assert content_digest(tensors()) == before


def test_a_digest_names_what_is_not_finite() -> None:
    bad = {"b": lazy(np.array([1.0, np.nan])), "a": lazy(np.float16([[np.inf]])), "good": lazy(np.int64([1]))}
    assert content_digest(bad)[1] == ["a", "b"]


def test_the_same_values_are_the_same_bytes_in_one_type() -> None:
    nans = np.array([1.0, np.nan, -0.0])
    assert same_values(lazy(nans), lazy(nans.copy()))
    assert not same_values(lazy(nans), lazy(np.array([1.0, np.nan, 0.0])))
    assert not same_values(lazy(np.int64([2**60])), lazy(np.int64([2**60 + 1])))
    assert not same_values(lazy(nans), lazy(nans.reshape(3, 1)))
    assert same_values(Reshaped(lazy(nans), (3, 1)), lazy(nans.reshape(3, 1)))


def test_the_same_values_are_the_same_numbers_in_two_types(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(100, dtype=np.float32)
    assert same_values(lazy(values), lazy(values.astype(np.float16)))
    assert same_values(lazy(values.astype(np.float64)), lazy(values.astype(np.float16)))
    monkeypatch.setattr(module, "_BAND_ELEMENTS", 32)
    changed = values.astype(np.float16)
    changed[-1] += 1
    assert not same_values(lazy(values), lazy(changed))


def test_the_fingerprint_of_targets_has_neither_names_nor_order_nor_types() -> None:
    one, other = np.arange(60, dtype=np.float32).reshape(6, 10), np.ones((4, 4), np.float32)
    found = target_fingerprint([lazy(one), lazy(other)])
    assert found.startswith("pet-ft1:")
    assert found == target_fingerprint([lazy(other), lazy(one)])
    assert found == target_fingerprint([lazy(one.astype(np.float64)), lazy(other.astype(np.float16))])


def test_the_fingerprint_of_targets_tells_values_shapes_and_numbers_apart() -> None:
    one = np.arange(60, dtype=np.float32).reshape(6, 10)
    changed = one.copy()
    changed[-1, -1] += 1
    others = [[changed], [one.reshape(10, 6)], [one, one], [one[:5]], []]
    assert len({target_fingerprint(map(lazy, arrays)) for arrays in [[one], *others]}) == 6
