"""Which folder is an iteration, and which iteration of a parent is meant."""

from pathlib import Path

import numpy as np
import pytest
from folders import add, write_two_shards
from iteration_folders import write_file, write_iteration

from ckpt_tools.formats import find_iteration, is_iteration, iteration_folder_name
from ckpt_tools.formats.iteration.folder import WeightsFileName, iteration_number
from surgery.errors import CorruptInputError, InputMissingError

TENSORS = {"w": (np.arange(4, dtype=np.float32), (2,))}


def make(parent: Path, *names: str) -> None:
    for name in names:
        write_iteration(parent / name, TENSORS, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model-0000001-0000008.safetensors", WeightsFileName("model", 1, 8)),
        ("opt-0000000-0000001.safetensors", WeightsFileName("opt", 0, 1)),
        ("a-model-b-model-0000002-0000004.safetensors", WeightsFileName("model", 2, 4, "a-model-b")),
        ("CKP-opt-12345678-12345679.safetensors", WeightsFileName("opt", 12345678, 12345679, "CKP")),
    ],
)
def test_the_name_of_a_weights_file_says_what_it_is_and_is_written_back(name: str, expected: WeightsFileName) -> None:
    assert WeightsFileName.parse(name) == expected
    assert str(expected) == name


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "model.safetensors", "model-0000001-0000008.ckpt"]
)
def test_other_names_are_no_weights_of_an_iteration(name: str) -> None:
    assert WeightsFileName.parse(name) is None


def test_the_folder_itself_is_found(tmp_path: Path) -> None:
    make(tmp_path, "anything")
    assert is_iteration(tmp_path / "anything")
    assert find_iteration(str(tmp_path / "anything")) == tmp_path / "anything"


def test_the_tracker_of_the_parent_decides(tmp_path: Path) -> None:
    make(tmp_path, "iteration_00000009", "iteration_00000010")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("9\n")
    assert is_iteration(tmp_path)
    assert find_iteration(tmp_path) == tmp_path / "iteration_00000009"


def test_a_number_outweighs_the_tracker_and_is_that_of_the_folder_itself(tmp_path: Path) -> None:
    make(tmp_path, "iteration_00000009", "iteration_00000010", "best")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    nine = tmp_path / "iteration_00000009"
    assert find_iteration(tmp_path, 9) == nine
    assert find_iteration(nine, 9) == nine
    for path, number, found in (
        (tmp_path, 8, "iteration_00000010, iter"),
        (nine, 8, "iteration 9"),
        ("best", 9, "no n"),
    ):
        with pytest.raises(InputMissingError, match=found):
            find_iteration(tmp_path / path, number)


def test_without_a_tracker_the_highest_number_counts_as_a_number(tmp_path: Path) -> None:
    make(tmp_path, "iteration_9", "iteration_10", "iteration_0000000100", "iteration_", "iteration_200_old")
    assert is_iteration(tmp_path)
    assert find_iteration(tmp_path) == tmp_path / "iteration_0000000100"


def test_of_two_spellings_of_a_number_mindformers_own_counts(tmp_path: Path) -> None:
    make(tmp_path, "iteration_12", iteration_folder_name(12), "iteration_0000000012")
    assert find_iteration(tmp_path) == tmp_path / "iteration_00000012"


def test_a_tracker_that_names_a_missing_folder_is_told_with_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, *(iteration_folder_name(number) for number in range(7)))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    with pytest.raises(InputMissingError) as caught:
        find_iteration(tmp_path)
    assert "names iteration 12" in str(caught.value)
    assert "only iteration_00000006, iteration_00000005" in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_a_tracker_beside_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    assert is_iteration(tmp_path)
    with pytest.raises(InputMissingError, match="no iteration"):
        find_iteration(tmp_path)


@pytest.mark.parametrize("text", ["", "ten", "-3", "1.5", "9" * 200, "\u0663", "\0"])
def test_a_tracker_without_a_number_is_refused(tmp_path: Path, text: str) -> None:
    make(tmp_path, iteration_folder_name(3))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)
    with pytest.raises(CorruptInputError, match="the number of an iteration"):
        find_iteration(tmp_path)


def test_a_folder_without_iterations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="iteration_00000000"):
        find_iteration(tmp_path)
    with pytest.raises(InputMissingError):
        find_iteration(tmp_path / "missing")


def test_what_a_single_rank_saved_is_an_iteration_without_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    write_file(folder / "model-0000000-0000001.safetensors", {"w": np.zeros(2, np.float32)})
    assert not is_iteration(folder)
    (folder / "common.json").write_text("{}")
    assert is_iteration(folder)


def test_other_checkpoints_are_no_iterations(tmp_path: Path) -> None:
    assert not is_iteration(tmp_path)
    write_two_shards(tmp_path)
    (tmp_path / "metadata.json").write_text('{"format": "of someone else"}')
    assert not is_iteration(tmp_path)
    assert not is_iteration(tmp_path / "missing")
    add(tmp_path / "hf", "model-00001-of-00001.safetensors", "a")
    assert not is_iteration(tmp_path / "hf" / "model-00001-of-00001.safetensors")


def test_a_folder_with_weights_of_its_own_is_no_parent(tmp_path: Path) -> None:
    make(tmp_path, iteration_folder_name(7))
    add(tmp_path, "model.safetensors", "a")
    assert not is_iteration(tmp_path)


def test_a_link_to_an_iteration_has_its_number(tmp_path: Path) -> None:
    make(tmp_path, iteration_folder_name(7))
    (tmp_path / "best").symlink_to(iteration_folder_name(7))
    assert iteration_number(tmp_path / "best") == 7
    assert iteration_number(tmp_path) is None
