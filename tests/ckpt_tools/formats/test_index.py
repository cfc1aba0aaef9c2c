"""Every way in which an index and its shards may disagree."""

import json
from pathlib import Path

import pytest
from folders import INDEX, ONE, TWO, add, add_index, write_two_shards

from ckpt_tools.formats.sharded import read_folder
from surgery.errors import CorruptInputError, InputMissingError


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_two_shards(tmp_path)
    return tmp_path


@pytest.mark.parametrize("is_link", [True, False])
def test_a_shard_that_is_not_there_is_missing(sharded: Path, is_link: bool) -> None:
    (sharded / TWO).unlink()
    if is_link:
        (sharded / TWO).symlink_to("absent")
    with pytest.raises(InputMissingError, match=TWO):
        read_folder(sharded)


def test_a_gap_in_numbered_shards_is_missing_without_an_index_too(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert len(read_folder(sharded).tensors) == 3
    (sharded / ONE).unlink()
    with pytest.raises(InputMissingError, match="number 1"):
        read_folder(sharded)


def test_a_tensor_in_another_shard_than_the_index_says_is_corrupt(sharded: Path) -> None:
    add_index(sharded, {"a": ONE, "b": TWO, "c": TWO})
    with pytest.raises(CorruptInputError, match=f"tensor 'b': expected it in {TWO}, found it in {ONE}"):
        read_folder(sharded)


def test_a_tensor_in_no_shard_is_corrupt(sharded: Path) -> None:
    add_index(sharded, {"a": ONE, "b": ONE, "c": TWO, "d": TWO})
    with pytest.raises(CorruptInputError, match=r"tensor 'd'.*no shard"):
        read_folder(sharded)


@pytest.mark.parametrize("has_index", [True, False])
def test_a_tensor_in_two_shards_is_corrupt(sharded: Path, has_index: bool) -> None:
    add(sharded, TWO, "c", "a")
    if not has_index:
        (sharded / INDEX).unlink()
    with pytest.raises(CorruptInputError, match=r"tensor 'a'.*in one file"):
        read_folder(sharded)


def test_all_contradictions_of_an_index_are_reported_at_once_but_not_without_end(sharded: Path) -> None:
    add_index(sharded, {f"t{i}": TWO for i in range(100)} | {"a": TWO})
    with pytest.raises(CorruptInputError) as caught:
        read_folder(sharded)
    assert len(caught.value.problems) == 21
    assert "81 tensors" in str(caught.value)


def test_a_tensor_that_the_index_does_not_list_is_read_with_a_warning(sharded: Path) -> None:
    add_index(sharded, {"a": ONE, "c": TWO}, total_size=24)
    checkpoint = read_folder(sharded)
    assert checkpoint.shards["b"] == ONE
    assert "such as 'b'" in checkpoint.warnings[0]


def test_weights_that_the_index_does_not_name_are_ignored_with_a_warning(sharded: Path) -> None:
    add(sharded, "consolidated.safetensors", "a", "b", "c")
    checkpoint = read_folder(sharded)
    assert len(checkpoint.tensors) == 3
    assert "consolidated.safetensors, which is ignored" in checkpoint.warnings[0]


@pytest.mark.parametrize("total_size", [23, 0, 24.5])
def test_a_wrong_total_size_is_a_warning(sharded: Path, total_size: float) -> None:
    add_index(sharded, {"a": ONE, "b": ONE, "c": TWO}, total_size=total_size)
    assert "total_size" in read_folder(sharded).warnings[0]


@pytest.mark.parametrize("total_size", [24, 24.0, None])
def test_a_right_or_absent_total_size_is_no_warning(sharded: Path, total_size: float | None) -> None:
    add_index(sharded, {"a": ONE, "b": ONE, "c": TWO}, total_size=total_size)
    assert read_folder(sharded).warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        r'{"weight_map": {"a": "\ud800"}}',
        r'{"metadata": {"k": "\udc00"}, "weight_map": {"a": "x"}}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {}, "weight_map": {}}',
        '{"metadata": [1], "weight_map": {"a": "x"}}',
        '{"weight_map": ' + "[" * 100_000,
        '{"metadata": {"deep": ' + "[" * 100_000,
        "\xff",
    ],
)
def test_a_broken_index_is_corrupt(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(CorruptInputError):
        read_folder(sharded)


def test_nested_metadata_of_any_depth_is_kept_or_refused(sharded: Path) -> None:
    weight_map = json.dumps({"a": ONE, "b": ONE, "c": TWO})
    for depth in [2, *range(100, 1100, 50)]:
        nested = "[" * depth + "]" * depth
        (sharded / INDEX).write_text(f'{{"metadata": {{"n": {nested}}}, "weight_map": {weight_map}}}')
        try:
            assert read_folder(sharded).metadata["n"] == nested
        except CorruptInputError as error:
            assert depth > 2
            assert "too deep" in str(error)  # noqa: PT017 - both outcomes are right, by Python's version


def test_a_file_name_with_more_digits_than_a_number_may_have_is_refused(sharded: Path) -> None:
    add_index(sharded, {"a": ONE, "b": ONE, "c": "1" * 5000})
    with pytest.raises(CorruptInputError, match="too long"):
        read_folder(sharded)
