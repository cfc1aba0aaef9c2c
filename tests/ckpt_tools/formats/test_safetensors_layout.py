"""Laying out safetensors files: bytes that the safetensors package reads, in an order that suits every reader."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import materialise
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckpt_tools.formats.model import NamedTensor
from ckpt_tools.formats.safetensors import layout_safetensors, read_safetensors
from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.views import Constant
from surgery.errors import MismatchError


def named(arrays: Mapping[str, np.ndarray]) -> list[NamedTensor]:
    return [(name, Constant(array, dtype_of(array))) for name, array in arrays.items()]


def laid_out(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    tensors = named(arrays)
    return materialise(layout_safetensors(tensors, metadata or {}), tensors)


def header_of(data: bytes) -> dict[str, dict[str, object]]:
    header: dict[str, dict[str, object]] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def test_the_bytes_are_those_of_the_safetensors_package_for_its_order() -> None:
    # It orders by the size of an element, then by name.
    arrays = {
        "a": np.arange(3, dtype=np.int64),
        'quoted "\n\x7fé': np.ones((2, 2), np.float32),
        "z": np.zeros((), np.float32),
        "b": np.ones(3, ml_dtypes.bfloat16),
        "c": np.zeros(5, np.uint8),
    }
    assert laid_out(arrays, {"format": "pt"}) == safetensors.numpy.save(arrays, {"format": "pt"})
    assert laid_out(arrays) == safetensors.numpy.save(arrays)


def test_the_order_given_is_kept_in_header_and_data() -> None:
    arrays = {name: np.full(4, i, dtype) for i, (name, dtype) in enumerate([("b", "i2"), ("c", "f8"), ("a", "i2")])}
    header = header_of(laid_out(arrays))
    assert list(header) == ["b", "c", "a"]
    assert header["c"]["data_offsets"] == [8, 40]


def test_uneven_tensors_move_to_the_end_where_an_element_would_lie_across_its_alignment() -> None:
    arrays = {
        "odd": np.zeros(3, np.uint8),
        "two": np.zeros(3, np.float16),
        "eight": np.zeros(2, np.float64),
        "four": np.zeros(1, np.float32),
        "even": np.zeros(4, np.float16),
    }
    data = laid_out(arrays)
    header = header_of(data)
    assert list(header) == ["eight", "even", "four", "two", "odd"]
    assert set(safetensors.numpy.load(data)) == set(arrays)


def test_the_data_begins_at_a_multiple_of_eight() -> None:
    for length in range(1, 10):
        layout = layout_safetensors(named({"n" * length: np.zeros(1)}), {})
        assert layout.payloads[0].offset % 8 == 0


def test_metadata_that_is_a_tensors_name_or_a_checksum_of_other_contents_is_left_out() -> None:
    data = laid_out({"w": np.zeros(1)}, {"w": "Float64", "crc_num": "123", "format": "ms"})
    assert header_of(data)["__metadata__"] == {"format": "ms"}


def test_int4_is_written_as_marked_int8(tmp_path: Path) -> None:
    tensors = [("q", Constant(np.array([1, -8], np.int8), BY_NAME["int4"]))]
    path = tmp_path / "q.safetensors"
    path.write_bytes(materialise(layout_safetensors(tensors, {}), tensors))
    assert header_of(path.read_bytes())["__metadata__"] == {"q": "Int4"}
    assert read_safetensors(path).tensors["q"].dtype.name == "int4"


@pytest.mark.parametrize("name", ["str", "complex128"])
def test_a_type_that_safetensors_lacks_is_refused_with_the_format_that_has_it(name: str) -> None:
    dtype = BY_NAME[name]
    with pytest.raises(MismatchError, match=rf"'s'.*{name}.*\.ckpt"):
        layout_safetensors([("s", Constant(np.zeros(2, dtype.numpy), dtype))], {})


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_a_name_that_the_header_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(MismatchError, match="Rename"):
        layout_safetensors(named({name: np.zeros(1)}), {})


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(MismatchError, match="twice"):
        layout_safetensors(named({"w": np.zeros(1)}) * 2, {})


def test_a_header_over_the_limit_is_refused() -> None:
    with pytest.raises(MismatchError, match="max-shard-size"):
        layout_safetensors(named({"n" * 60_000_000 + end: np.zeros(1) for end in "ab"}), {})


_TYPES = ["bool", "i1", "u2", "f2", "f4", "f8", "c8"]
_ARRAYS = st.sampled_from(_TYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.dictionaries(_TEXT.filter("__metadata__".__ne__), _ARRAYS, max_size=6), st.dictionaries(_TEXT, _TEXT, max_size=3)
)
@settings(max_examples=60, deadline=None)
def test_what_is_laid_out_reads_back_here_and_in_the_safetensors_package(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    data = laid_out(arrays, metadata)
    path.write_bytes(data)
    checkpoint = read_safetensors(path)
    assert checkpoint.warnings == ()
    assert checkpoint.metadata == {key: text for key, text in metadata.items() if key not in {*arrays, "crc_num"}}
    theirs = safetensors.numpy.load(data)
    assert set(checkpoint.tensors) == set(theirs) == set(arrays)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.shape == arrays[name].shape
        assert tensor.read_all().tobytes() == arrays[name].tobytes() == theirs[name].tobytes()
        assert tensor.byte_runs()[0].offset % arrays[name].dtype.itemsize == 0 or not tensor.nbytes
