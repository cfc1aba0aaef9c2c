"""What is said of the difference of two checkpoints, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from merge_cases import hugging_face, llama, random, save
from transform_cases import TENSORS, write_case

from ckpt_tools import inspect_checkpoint
from ckpt_tools.reports import ComparedTensor, Comparison
from surgery.errors import UsageError


def compare(folder: Path, first: dict[str, np.ndarray], other: dict[str, np.ndarray], **options: object) -> Comparison:
    save(folder / "first.ckpt", first)
    save(folder / "other.safetensors", other)
    report = inspect_checkpoint(folder / "first.ckpt", folder / "other.safetensors", **options)  # type: ignore[arg-type]
    assert report.comparison is not None
    return report.comparison


def only(comparison: Comparison) -> ComparedTensor:
    (tensor,) = comparison.tensors
    return tensor


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_norms_are_those_of_float64(tmp_path: Path, dtype: str) -> None:
    first, other = random(1, 300, 1500, dtype=dtype), random(2, 300, 1500, dtype=dtype)
    other[:100] = first[:100]
    found = only(compare(tmp_path, {"w": first}, {"w": other}, threads=3))
    left, right = first.astype("f8"), other.astype("f8")
    assert found.norm == pytest.approx(np.linalg.norm(left), rel=1e-12)
    assert found.difference_norm == pytest.approx(np.linalg.norm(left - right), rel=1e-12)
    assert found.relative_difference == pytest.approx(np.linalg.norm(left - right) / np.linalg.norm(left), rel=1e-12)
    assert found.largest_difference == np.max(np.abs(left - right))
    assert found.differing == np.count_nonzero(left != right)
    assert not found.equal_bits


def test_the_same_bits_for_any_number_of_threads(tmp_path: Path) -> None:
    arrays = {"w": random(1, 700, 1500)}, {"w": random(2, 700, 1500)}
    assert compare(tmp_path, *arrays, threads=1) == compare(tmp_path, *arrays, threads=7)


def test_equal_files_are_equal_whatever_their_format(tmp_path: Path) -> None:
    found = compare(tmp_path, llama(), llama())
    assert found.equal
    assert all(tensor.equal_bits and tensor.differing == 0 for tensor in found.tensors)


def test_equal_nan_is_equal_and_nan_in_one_is_a_difference(tmp_path: Path) -> None:
    first = np.array([np.nan, 1, 2, np.inf, np.inf], "f4")
    other = np.array([np.nan, np.nan, 4, np.inf, -np.inf], "f4")
    assert compare(tmp_path, {"w": first}, {"w": first}).equal
    found = only(compare(tmp_path, {"w": first}, {"w": other}))
    assert (found.differing, found.nonfinite, found.largest_difference, found.difference_norm) == (3, 2, 2.0, 2.0)
    assert found.norm == pytest.approx(5**0.5)


def test_the_sign_of_zero_is_a_difference_of_bits_by_nothing(tmp_path: Path) -> None:
    found = only(compare(tmp_path, {"w": np.array([0.0], "f4")}, {"w": np.array([-0.0], "f4")}))
    assert (found.equal_bits, found.differing, found.largest_difference) == (False, 1, 0.0)


def test_another_type_is_a_difference_though_no_value_is(tmp_path: Path) -> None:
    first = random(1, 8, 8, dtype="bf16")
    first[0, 0] = np.nan
    comparison = compare(tmp_path, {"w": first}, {"w": first.astype("f4")})
    found = only(comparison)
    assert (comparison.equal, found.equal_bits, found.differing, found.other_dtype) == (False, False, 0, "fp32")


def test_another_shape_is_told_and_its_values_are_not_compared(tmp_path: Path) -> None:
    found = only(compare(tmp_path, {"w": random(1, 4, 8)}, {"w": random(1, 8, 4)}))
    assert (found.shape, found.other_shape, found.differing, found.norm) == ((4, 8), (8, 4), None, None)
    assert not found.equal_bits


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i4", "i8"])
def test_whole_numbers_are_compared_too(tmp_path: Path, dtype: str) -> None:
    found = only(compare(tmp_path, {"w": np.array([0, 1], dtype)}, {"w": np.array([1, 1], dtype)}))
    assert (found.differing, found.largest_difference) == (1, 1.0)


def test_names_of_one_side_are_told(tmp_path: Path) -> None:
    found = compare(tmp_path, {"a": random(1, 2), "b": random(2, 2)}, {"b": random(2, 2), "c": random(3, 2)})
    assert (found.equal, found.only_here, found.only_there) == (False, ("a",), ("c",))


def test_empty_tensors_and_scalars_are_compared(tmp_path: Path) -> None:
    arrays = {"none": np.zeros((0, 4), "f4"), "one": np.array(3.0, "f4")}
    assert compare(tmp_path, arrays, arrays).equal


def test_two_spellings_are_compared_under_one(tmp_path: Path) -> None:
    assert compare(tmp_path, llama(), hugging_face(llama()), names="hf").equal
    assert compare(tmp_path, hugging_face(llama()), llama(), names="mindformers").equal
    report = inspect_checkpoint(tmp_path / "first.ckpt", tmp_path / "other.safetensors")
    assert any("--names hf" in warning for warning in report.warnings)


@pytest.mark.parametrize("is_first", [True, False])
def test_slices_of_ranks_are_compared_with_a_whole_checkpoint(tmp_path: Path, is_first: bool) -> None:
    write_case(tmp_path)
    save(tmp_path / "whole.safetensors", TENSORS)
    ranks, whole = tmp_path / "in", tmp_path / "whole.safetensors"
    if is_first:
        report = inspect_checkpoint(ranks, whole, src_strategy=tmp_path / "src.ckpt")
    else:
        report = inspect_checkpoint(whole, ranks, other_strategy=tmp_path / "src.ckpt")
    assert report.comparison is not None
    assert report.comparison.equal


@pytest.mark.parametrize("option", [{"other_strategy": "x"}, {"other_step": "1_1"}, {"names": "hf"}])
def test_options_of_a_comparison_need_one(tmp_path: Path, option: dict[str, str]) -> None:
    save(tmp_path / "a.ckpt", llama())
    with pytest.raises(UsageError, match="OTHER"):
        inspect_checkpoint(tmp_path / "a.ckpt", **option)  # type: ignore[arg-type]
