"""Orders for another machine: what travels, what comes back, and what the other machine may not see."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lazy_cases import stored
from ray_cases import Ones

from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Stored
from ckpt_tools.tensors.sources import Source, open_source
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.claims import claim_output
from ckpt_tools.writing.executors import Written
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile
from ckpt_tools.writing.remote import Order, fill_order
from surgery.errors import InputChangedError, NonFiniteError, ResourceError


def order_for(workspace: Workspace, tensor: LazyTensor) -> Order:
    file = OutputFile("rank_0/x.safetensors", "safetensors", (("w", tensor),))
    return Order(workspace, workspace.new_part(), Budget(2, 100), file)


def stored_in(source: Source) -> Stored:
    return Stored(BY_NAME["fp32"], (source.size // 4,), (ByteRun(source, 0, source.size),))


def test_a_file_is_written_where_the_order_says_and_nowhere_else(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float32)
    told: list[int] = []
    with claim_output(tmp_path / "out", "digest", is_folder=True, force=False) as workspace:
        order = order_for(workspace, stored(tmp_path / "in", array))
        answer = fill_order(order.to_bytes(), told.append)
        assert isinstance(answer, Written)
        assert answer.size == order.part.stat().st_size == order.file.nbytes()
        assert order.part.read_bytes().endswith(array.tobytes())
        assert list(workspace.content.rglob("*")) == []
        workspace.complete(order.part, answer.name)
        assert (workspace.content / "rank_0/x.safetensors").is_file()


def test_plans_travel_and_tensors_do_not(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "in", np.zeros(1_000_000, np.float32))
    with claim_output(tmp_path / "out", "digest", is_folder=True, force=False) as workspace:
        assert len(order_for(workspace, tensor).to_bytes()) < 5000


def test_an_input_is_the_same_whatever_its_device_is_called_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(400))
    source = replace(open_source(tmp_path / "in"), device=987_654)
    with claim_output(tmp_path / "out", "digest", is_folder=True, force=False) as workspace:
        answer = fill_order(order_for(workspace, stored_in(source)).to_bytes(), lambda done: None)
        assert isinstance(answer, Written)


def test_another_file_under_an_inputs_name_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(400))
    source = open_source(path)
    with claim_output(tmp_path / "out", "digest", is_folder=True, force=False) as workspace:
        order = order_for(workspace, stored_in(source)).to_bytes()
        os.utime(path, ns=(source.mtime_ns, source.mtime_ns + 1))
        answer = fill_order(order, lambda done: None)
        assert isinstance(answer, InputChangedError)
        assert str(path) in str(answer)


@pytest.mark.parametrize("lacks", ["input", "output"])
def test_a_machine_that_does_not_see_the_files_says_which(tmp_path: Path, lacks: str) -> None:
    (tmp_path / "in").write_bytes(bytes(400))
    with claim_output(tmp_path / "out", "digest", is_folder=True, force=False) as workspace:
        order = order_for(workspace, stored_in(open_source(tmp_path / "in"))).to_bytes()
        if lacks == "input":
            (tmp_path / "in").unlink()
    # The hidden folder is gone, and stays so.
    answer = fill_order(order, lambda done: None)
    assert isinstance(answer, ResourceError)
    missing = tmp_path / "in" if lacks == "input" else tmp_path / ".out.pet-surgery"
    assert str(answer).startswith(f"{missing}: expected a file system that this machine and all Ray nodes share")
    assert not (tmp_path / ".out.pet-surgery").exists()


@pytest.mark.parametrize(("does", "kind"), [("refuse", NonFiniteError), ("break", OSError)])
def test_what_is_in_the_way_comes_back_as_it_is(tmp_path: Path, does: str, kind: type[Exception]) -> None:
    with claim_output(tmp_path / "out", "digest", is_folder=True, force=False) as workspace:
        answer = fill_order(order_for(workspace, Ones((9,), tmp_path, does)).to_bytes(), lambda done: None)
        assert isinstance(answer, kind)


def test_a_bug_is_raised(tmp_path: Path) -> None:
    with claim_output(tmp_path / "out", "digest", is_folder=True, force=False) as workspace:
        order = order_for(workspace, Ones((9,), tmp_path, "fail")).to_bytes()
        with pytest.raises(ValueError, match="a bug"):
            fill_order(order, lambda done: None)
