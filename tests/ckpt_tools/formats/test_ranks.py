"""Folders of ranks: which file of each rank is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from merge_cases import save

from ckpt_tools.formats.ranks import is_rank_folder, rank_numbers, read_rank_folder
from surgery.errors import CorruptInputError, InputMissingError, MismatchError, PetSurgeryError, UsageError


def write(folder: Path, *names: str) -> Path:
    """Files `rank_N/NAME`, each with the scalar `which` that is its place among them."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name, {"which": np.array(number)})
    return folder


def chosen(folder: Path, step: str | None = None) -> list[int]:
    """Which file of each rank was read."""
    return [int(rank.tensors["which"].read_all()) for rank in read_rank_folder(folder, step).ranks]


def refused(folder: Path, error: type[PetSurgeryError], step: str | None = None) -> str:
    with pytest.raises(error) as caught:
        read_rank_folder(folder, step)
    assert type(caught.value) is error
    return str(caught.value)


def test_ranks_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, *(f"rank_{rank}/x.ckpt" for rank in range(12)))
    assert chosen(tmp_path) == list(range(12))
    assert rank_numbers(tmp_path) == list(range(12))
    folder = read_rank_folder(tmp_path)
    assert (folder.path, folder.step) == (tmp_path, "")
    assert [rank.path for rank in folder.ranks] == [tmp_path / f"rank_{rank}" / "x.ckpt" for rank in range(12)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x-9_2", "x-10_1", "x-10_1a"], "both"),
        (["x-9_2", "x-10_1", "x-2_300"], "10_1"),
        (["x-1_9", "x-1_10", "x-1_2"], "1_10"),
        (["llama_rank_0-3_2", "llama_rank_0_1-3_4"], "3_4"),
        (["checkpoint_0"], ""),
        (["a-b-c_rank_0-7_1"], "7_1"),
        (["rank_0"], ""),
        (["llama_lora_rank_8_rank_0-3_2"], "3_2"),
    ],
)
def test_the_latest_step_is_the_greatest_number(tmp_path: Path, names: list[str], expected: str) -> None:
    write(tmp_path, *(f"rank_0/{name}.safetensors" for name in names))
    if expected == "both":
        assert "with and without a step" in refused(tmp_path, MismatchError)
        return
    folder = read_rank_folder(tmp_path)
    assert folder.step == expected
    assert str(folder.ranks[0].path).endswith(f"{expected}.safetensors") or not expected


def test_a_step_is_chosen_in_all_ranks_whatever_else_they_hold(tmp_path: Path) -> None:
    write(tmp_path, "rank_0/x-9_1.ckpt", "rank_0/x-10_1.ckpt", "rank_1/x-9_1.ckpt", "rank_1/x.ckpt")
    assert chosen(tmp_path, "9_1") == [0, 2]
    assert "rank_1 is at step 9_1, rank_0 at step 10_1" in refused(tmp_path, MismatchError)
    assert "a step that all ranks have: 9_1" in refused(tmp_path, InputMissingError, "10_1")
    refused(tmp_path, UsageError, "ten")


def test_other_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "rank_0/x.ckpt", "rank_0/.y.ckpt", "rank_0/deeper/z.ckpt", "other/x.ckpt", "rank_a/x.ckpt")
    (tmp_path / "rank_0" / "x.json").write_text("{}")
    (tmp_path / "rank_0" / "folder.ckpt").mkdir()
    (tmp_path / "rank_1").write_text("a file")
    (tmp_path / "latest.txt").write_text("3")
    assert chosen(tmp_path) == [0]


def test_folders_may_be_links(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "a/x.ckpt", "b/x.ckpt")
    (tmp_path / "run").mkdir()
    for rank, name in enumerate("ab"):
        (tmp_path / "run" / f"rank_{rank}").symlink_to(tmp_path / "elsewhere" / name)
    assert chosen(tmp_path / "run") == [0, 1]


@pytest.mark.parametrize(
    ("names", "is_one"),
    [
        (["rank_0/x.ckpt"], True),
        (["rank_7/x.ckpt"], True),
        (["rank_00/x.ckpt"], False),
        (["rank_-1/x.ckpt"], False),
        (["my_rank_0/x.ckpt"], False),
        (["rank_0.ckpt"], False),
        (["rank_1\u0662/x.ckpt"], False),  # a digit, but not one of these folders' names
    ],
)
def test_a_folder_of_ranks_is_known_by_its_folders(tmp_path: Path, names: list[str], is_one: bool) -> None:
    write(tmp_path, *names)
    assert is_rank_folder(tmp_path) is is_one
    if not is_one:
        assert "rank_0, rank_1, ..." in refused(tmp_path, InputMissingError)


def test_a_path_that_is_no_folder_is_no_folder_of_ranks(tmp_path: Path) -> None:
    assert not is_rank_folder(tmp_path / "nowhere")
    assert not is_rank_folder(tmp_path / ("a" * 5000))
    assert not is_rank_folder(write(tmp_path, "x.ckpt") / "x.ckpt")


def test_missing_ranks_are_named_as_far_as_they_are_few(tmp_path: Path) -> None:
    write(tmp_path, "rank_1/x.ckpt", "rank_9/x.ckpt")
    text = refused(tmp_path, MismatchError)
    assert "no rank_0, rank_2, rank_3, rank_4, rank_5 and 3 more" in text
    assert "all of rank_0 to rank_9" in text


def test_a_rank_far_beyond_the_others_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path, "rank_0/x.ckpt", "rank_2/x.ckpt", f"rank_{10**200}/x.ckpt")
    text = refused(tmp_path, MismatchError)
    assert "no rank_1, rank_3, rank_4, rank_5, rank_6 and 999" in text


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "error"), [(remove, InputMissingError), (cut, CorruptInputError)])
def test_what_is_wrong_with_several_ranks_is_told_at_once(
    tmp_path: Path, harm: Callable[[Path], None], error: type[PetSurgeryError]
) -> None:
    write(tmp_path, *(f"rank_{rank}/x.ckpt" for rank in range(4)))
    for rank in (1, 3):
        harm(tmp_path / f"rank_{rank}" / "x.ckpt")
    text = refused(tmp_path, error)
    assert [rank for rank in range(4) if f"rank_{rank}" in text] == [1, 3]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["rank_0/a-1_1.ckpt", "rank_0/b-1_1.ckpt"], "2 files: a-1_1.ckpt, b-1_1.ckpt"),
        (["rank_0/x.ckpt", "rank_0/x.safetensors"], "2 files: x.ckpt, x.safetensors"),
        (["rank_0/llama_rank_1-1_1.ckpt"], "the file of rank 1"),
        (["rank_0/rank_10.ckpt"], "the file of rank 10"),
    ],
)
def test_a_rank_has_one_file_of_its_own(tmp_path: Path, names: list[str], said: str) -> None:
    assert said in refused(write(tmp_path, *names), MismatchError)
