"""The executors' names, and what is missing for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import run_here
from merge_cases import BASE, PAIRS, mindpet, names_of, write

from ckpt_tools import merge, transform
from ckpt_tools.cli.merge import merge_command
from ckpt_tools.writing.executors import check_executor
from surgery.errors import MissingExtraError, UsageError


@pytest.mark.parametrize("executor", ["", "threads", "Ray", "ray:", "ray://", "http://a:1", "ray/x"])
def test_what_is_no_executor_is_refused(executor: str) -> None:
    with pytest.raises(UsageError, match=r"--executor: expected local, ray or ray://HOST:PORT, found "):
        check_executor(executor)


def test_operations_refuse_it_before_they_look_at_files() -> None:
    with pytest.raises(UsageError, match="--executor"):
        merge("nowhere", executor="threads")
    with pytest.raises(UsageError, match="--executor"):
        transform("nowhere", executor="threads", dry_run=True)


@pytest.mark.parametrize("executor", ["ray", "ray://127.0.0.1:10001"])
def test_a_missing_ray_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--executor ray.*: .*not installed. pip install 'pet-surgery\[ray\]'"):
        check_executor(executor)
    check_executor("local")


def test_the_command_ends_with_2_where_ray_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write(tmp_path / "base.ckpt", BASE)
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    arguments = (tmp_path / "base.ckpt", tmp_path / "lora.ckpt", "--alpha", "8", "-o", tmp_path / "out.ckpt")
    assert run_here(merge_command, *arguments, "--executor", "ray") == 2
    assert "pip install 'pet-surgery[ray]'" in capsys.readouterr().err
    assert names_of(tmp_path) == ["base.ckpt", "lora.ckpt"]
