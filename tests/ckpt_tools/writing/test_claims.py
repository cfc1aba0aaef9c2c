"""Runs of parts of an output: they work side by side, and what they completed waits for the run that publishes it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from ckpt_tools.writing import claims
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.claims import claim_output, claim_part
from surgery.errors import OutputExistsError, OutputLockedError, ResourceError

HIDDEN = ".out.pet-surgery"


def complete(workspace: Workspace, name: str) -> None:
    part = workspace.new_part()
    part.write_text(name)
    workspace.complete(part, name)


def run_part(folder: Path, *names: str, digest: str = "d", force: bool = False) -> None:
    with claim_part(folder / "out", digest, is_folder=True, force=force) as workspace:
        for name in names:
            complete(workspace, name)


def publish(folder: Path, *, digest: str = "d", force: bool = False) -> list[str]:
    """Publish what is complete; its names."""
    with claim_output(folder / "out", digest, is_folder=True, force=force) as workspace:
        workspace.publish()
    return contents(folder / "out")


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail() -> None:
    raise ValueError("failed")


def test_what_parts_completed_is_published_by_the_run_of_the_whole(tmp_path: Path) -> None:
    run_part(tmp_path, "rank_0/x")
    run_part(tmp_path, "rank_1/x", "rank_2/x")
    assert not (tmp_path / "out").exists()
    assert publish(tmp_path) == ["rank_0/x", "rank_1/x", "rank_2/x"]
    assert names(tmp_path) == ["out"]


def test_runs_of_parts_work_at_the_same_time_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    first = claim_part(tmp_path / "out", "d", is_folder=True, force=False)
    second = claim_part(tmp_path / "out", "d", is_folder=True, force=False)
    with first as one, second as other:
        assert one.parts != other.parts
        complete(one, "rank_0/x")
        complete(other, "rank_0/x")  # twice the same is the same
        with pytest.raises(OutputLockedError, match="another run holds it"):
            publish(tmp_path)
    assert publish(tmp_path) == ["rank_0/x"]


def test_a_run_of_the_whole_keeps_runs_of_parts_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PATIENCE_SECONDS", 0.1)
    with (
        claim_output(tmp_path / "out", "d", is_folder=True, force=False),
        pytest.raises(OutputLockedError, match="a run of the whole output holds it"),
    ):
        run_part(tmp_path)
    assert names(tmp_path) == []


def test_runs_of_parts_of_two_plans_do_not_mix(tmp_path: Path) -> None:
    with claim_part(tmp_path / "out", "d", is_folder=True, force=False) as workspace:
        complete(workspace, "rank_0/x")
        with pytest.raises(OutputLockedError, match="runs of --ranks with other arguments"):
            run_part(tmp_path, digest="other", force=True)
    assert publish(tmp_path) == ["rank_0/x"]


@pytest.mark.parametrize("is_part", [False, True])
def test_what_parts_completed_is_not_thrown_away_for_another_plan(tmp_path: Path, is_part: bool) -> None:
    run_part(tmp_path, "rank_0/x")
    before = contents(tmp_path)
    with pytest.raises(OutputExistsError, match="completed for other arguments"):
        run_part(tmp_path, digest="other") if is_part else publish(tmp_path, digest="other")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("is_part", [False, True])
def test_with_force_another_plan_starts_anew(tmp_path: Path, is_part: bool) -> None:
    run_part(tmp_path, "rank_0/x")
    if is_part:
        run_part(tmp_path, "rank_1/x", digest="other", force=True)
        assert publish(tmp_path, digest="other") == ["rank_1/x"]
    else:
        assert publish(tmp_path, digest="other", force=True) == []


def test_a_run_of_the_whole_that_fails_leaves_what_parts_completed(tmp_path: Path) -> None:
    run_part(tmp_path, "rank_0/x")
    with pytest.raises(ValueError, match="failed"), claim_output(tmp_path / "out", "d", is_folder=True, force=False):
        fail()
    assert publish(tmp_path) == ["rank_0/x"]


def test_a_part_that_fails_leaves_what_it_completed_and_nothing_that_it_began(tmp_path: Path) -> None:
    def run() -> None:
        with claim_part(tmp_path / "out", "d", is_folder=True, force=False) as workspace:
            complete(workspace, "rank_0/x")
            workspace.new_part().write_text("half")
            fail()

    with pytest.raises(ValueError, match="failed"):
        run()
    assert contents(tmp_path / HIDDEN) == ["content/rank_0/x", "kept", "plan.sha256"]


def test_a_part_that_completed_nothing_leaves_nothing(tmp_path: Path) -> None:
    def run() -> None:
        with claim_part(tmp_path / "deep" / "out", "d", is_folder=True, force=False) as workspace:
            workspace.new_part().write_text("half")
            fail()

    with pytest.raises(ValueError, match="failed"):
        run()
    assert names(tmp_path) == []


def test_what_a_killed_part_began_is_removed_once_no_other_runs(tmp_path: Path) -> None:
    run_part(tmp_path, "rank_0/x")
    (tmp_path / HIDDEN / "parts" / "dead").mkdir(parents=True)
    with claim_part(tmp_path / "out", "d", is_folder=True, force=False):
        assert not (tmp_path / HIDDEN / "parts" / "dead").exists()


def test_a_part_of_an_output_that_exists_is_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="it exists already"):
        run_part(tmp_path)
    run_part(tmp_path, "rank_0/x", force=True)
    assert publish(tmp_path, force=True) == ["rank_0/x"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_parts_work_and_spare_what_others_are_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim_part(tmp_path / "out", "d", is_folder=True, force=False) as workspace:
        part = workspace.new_part()
        part.write_text("half")
        run_part(tmp_path, "rank_1/x")
        workspace.complete(part, "rank_0/x")
    assert publish(tmp_path) == ["rank_0/x", "rank_1/x"]


def test_a_folder_that_cannot_be_prepared_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(claims, "write_synced", refuse)
    with pytest.raises(ResourceError, match="no space left"):
        run_part(tmp_path)
    with pytest.raises(ResourceError, match="no space left"):
        publish(tmp_path)
    assert names(tmp_path) == []
