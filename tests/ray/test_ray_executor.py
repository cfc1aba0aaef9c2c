"""Files that a Ray cluster fills: the same bytes, and the same errors, whatever becomes of workers and nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from merge_cases import BASE, PAIRS, add_crc, contents, factors, mindpet, names_of, random, write, write_folder
from rank_folders import strategy_of
from ray_cases import Ones, plan_of, readers
from transform_cases import COLUMNS, ROWS, write_case

from ckpt_tools import TransformReport, merge, transform
from ckpt_tools.layout.model import Layout
from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.lazy import ByteRun, Stored
from ckpt_tools.tensors.sources import open_source
from ckpt_tools.writing import ray_tasks
from ckpt_tools.writing.claims import claim_output
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputBytes, OutputCopy, Plan
from ckpt_tools.writing.write import execute
from surgery.errors import (
    CorruptInputError,
    InputChangedError,
    NonFiniteError,
    PetSurgeryError,
    ResourceError,
    UsageError,
)
from surgery.version import __version__

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.usefixtures("cluster")


class Counted:
    """Progress, as numbers."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total_bytes: int, what: str) -> None:
        self.total, self.done = total_bytes, 0

    def advance(self, done_bytes: int) -> None:
        assert done_bytes >= 0
        self.done += done_bytes

    def finish(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where readers leave their marks."""
    path = tmp_path / "marks"
    path.mkdir()
    return path


def meanwhile(happens: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=happens, daemon=True)
    thread.start()
    return thread


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_shards_of_a_merge_have_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    base = write_folder(tmp_path / "base", BASE, suffix, shards=4)
    lora = write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    (base / "tokenizer.json").write_text("{}")
    progress = Counted()
    reports = [
        merge(base, lora, alpha=8, output=tmp_path / executor, executor=executor, progress=progress)
        for executor in ("local", "ray")
    ]
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert reports[0].weights == reports[1].weights
    assert progress.done == progress.total > 0
    assert names_of(tmp_path) == ["base", "local", "lora.ckpt", "ray"]


def test_a_single_file_has_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    for executor in ("local", "ray"):
        output = tmp_path / f"{executor}.safetensors"
        merge(tmp_path / "base.ckpt", tmp_path / "lora.ckpt", alpha=8, output=output, executor=executor)
    assert contents(tmp_path / "ray.safetensors") == contents(tmp_path / "local.safetensors")
    assert names_of(tmp_path) == ["base.ckpt", "local.safetensors", "lora.ckpt", "ray.safetensors"]


def test_what_is_combined_beforehand_is_read_by_workers_and_gone_behind_them(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", BASE, shards=3)
    adapters = [write(tmp_path / name, mindpet(factors(seed=seed))) for seed, name in enumerate(("a.ckpt", "b.ckpt"))]
    for executor in ("local", "ray"):
        output = tmp_path / executor
        merge(base, *adapters, alpha=8, method="ties", density=0.5, output=output, executor=executor)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert names_of(tmp_path) == ["a.ckpt", "b.ckpt", "base", "local", "ray"]


def test_ranks_of_a_transform_have_the_same_bytes(tmp_path: Path) -> None:
    write_case(tmp_path)
    for executor in ("local", "ray"):
        transform(
            tmp_path / "in",
            src_strategy=tmp_path / "src.ckpt",
            dst_strategy=tmp_path / "dst.ckpt",
            output=tmp_path / executor,
            executor=executor,
        )
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert sorted(contents(tmp_path / "ray")) == [
        "pet-manifest.json",
        "rank_0/checkpoint_0.ckpt",
        "rank_1/checkpoint_1.ckpt",
    ]


def test_what_all_workers_together_read_whole_is_checked_and_parts_are_kept_for_a_last_call(tmp_path: Path) -> None:
    tensors = {f"{number}.weight": random(number, 256, 256) for number in range(3)}
    source, target = (strategy_of({name: Layout((2,), cut) for name in tensors}) for cut in (ROWS, COLUMNS))
    write_case(tmp_path, tensors=tensors, source=source, target=target)
    files = sorted((tmp_path / "in").rglob("*.ckpt"))
    for file in files:
        add_crc(file)

    def run(output: str, ranks: str | None = None) -> TransformReport:
        strategies = {"src_strategy": tmp_path / "src.ckpt", "dst_strategy": tmp_path / "dst.ckpt"}
        return transform(tmp_path / "in", **strategies, output=tmp_path / output, ranks=ranks, executor="ray")

    assert run("whole").crc_checked == tuple(map(str, files))
    assert run("out", "1").crc_checked == ()
    assert run("out").resumed == ("rank_1/checkpoint_1.ckpt",)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 1
    files[1].write_bytes(data)
    with pytest.raises(CorruptInputError, match="as its end states"):
        run("damaged")


def test_the_files_of_a_node_that_is_lost_are_written_elsewhere(tmp_path: Path, folder: Path, cluster: Cluster) -> None:
    doomed = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    tensors = {f"x{number}": Ones((1000,), folder, "wait") for number in range(6)}
    progress = Counted()

    def lose() -> None:
        wait_for(lambda: len(readers(folder)) == 3)  # every node has begun one
        cluster.remove_node(doomed, allow_graceful=False)
        (folder / "go").touch()

    thread = meanwhile(lose)
    outcome = execute(plan_of(tmp_path / "out", **tensors), executor="ray", progress=progress)
    thread.join()
    execute(plan_of(tmp_path / "local", **tensors))
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    assert outcome.bytes_written == progress.done == progress.total
    assert not (tmp_path / ".out.pet-surgery").exists()


def test_a_worker_that_dies_once_costs_only_its_file_a_second_try(tmp_path: Path, folder: Path) -> None:
    def kill() -> None:
        wait_for(lambda: readers(folder))
        os.kill(readers(folder).pop(), signal.SIGKILL)
        (folder / "go").touch()

    thread = meanwhile(kill)
    execute(plan_of(tmp_path / "out", x=Ones((1000,), folder, "wait")), executor="ray")
    thread.join()
    assert len(readers(folder)) == 2
    assert names_of(tmp_path) == ["marks", "out"]


def test_a_file_that_loses_every_worker_is_named(tmp_path: Path, folder: Path) -> None:
    plan = plan_of(tmp_path / "out", good=Ones((10,), folder), bad=Ones((10,), folder, "die"))
    with pytest.raises(ResourceError, match=r"^bad\.safetensors: .* 4 Ray workers were lost.* lower --threads"):
        execute(plan, executor="ray")
    assert names_of(tmp_path) == ["marks"]


@pytest.mark.parametrize(("does", "kind"), [("refuse", NonFiniteError), ("break", ResourceError), ("fail", ValueError)])
def test_an_error_on_a_worker_is_the_error_that_it_is_here(
    tmp_path: Path, folder: Path, does: str, kind: type[Exception]
) -> None:
    messages = []
    for executor in ("local", "ray"):
        plan = plan_of(tmp_path / "out", x=Ones((10,), folder, does))
        with pytest.raises(kind) as caught:
            execute(plan, executor=executor)
        assert isinstance(caught.value, PetSurgeryError) == (does != "fail")
        messages.append(str(caught.value))
    assert messages[0] in messages[1]  # Ray puts the worker's traceback before a bug's message
    assert does == "fail" or messages[0] == messages[1]
    assert names_of(tmp_path) == ["marks"]


def test_an_input_that_changed_is_noticed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(4000))
    source = open_source(tmp_path / "in")
    (tmp_path / "in").write_bytes(bytes(8000))
    plan = plan_of(tmp_path / "out", x=Stored(BY_NAME["fp32"], (1000,), (ByteRun(source, 0, 4000),)))
    with pytest.raises(InputChangedError, match=f"^{tmp_path / 'in'}: "):
        execute(plan, executor="ray")
    assert names_of(tmp_path) == ["in", "marks"]


def test_an_interrupted_run_leaves_nothing_and_nobody_at_work(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tasks, "_GRACE_SECONDS", 0.5)  # for tasks that would never end by themselves

    def interrupt() -> None:
        wait_for(lambda: len(readers(folder)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = meanwhile(interrupt)
    tensors = {f"x{number}": Ones((10,), folder, "wait") for number in range(9)}
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        execute(plan_of(tmp_path / "out", **tensors), executor="ray")
    thread.join()
    assert names_of(tmp_path) == ["marks"]
    wait_for(lambda: not any(is_alive(process) for process in readers(folder)))
    assert len(readers(folder)) == 2


def test_files_that_a_killed_run_completed_are_taken_over(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "note").write_text("a")
    extra = (OutputCopy("note", open_source(tmp_path / "note")), OutputBytes("index.json", b"{}"))
    tensors = {"x": Ones((10,), folder), "y": Ones((10,), folder)}
    plan = Plan(tmp_path / "out", True, (*plan_of(tmp_path / "out", **tensors).entries, *extra))
    execute(Plan(tmp_path / "one", True, plan.entries))
    hidden = tmp_path / ".out.pet-surgery"
    with claim_output(plan.output, plan.digest(), is_folder=True, force=False):
        data = (tmp_path / "one" / "x.safetensors").read_bytes()
        (hidden / "content" / "x.safetensors").write_bytes(data)
        mtime_ns = (hidden / "content" / "x.safetensors").stat().st_mtime_ns
        known = {"size": len(data), "mtime_ns": mtime_ns, "measured": {}, "digests": {}}
        (hidden / "x.safetensors.statistics.json").write_text(json.dumps(known))
        (hidden / "parts" / "of a killed run").mkdir(parents=True)
        (hidden / "parts" / "of a killed run" / "of a lost worker").write_text("half")
        hidden.rename(tmp_path / "kept")
    (tmp_path / "kept").rename(hidden)
    outcome = execute(plan, executor="ray", budget=Budget(2))
    assert outcome.resumed == ["x.safetensors"]
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert not hidden.exists()


def test_a_node_with_another_version_is_told(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "__version__", "99.0")
    with pytest.raises(ResourceError) as caught:
        execute(plan_of(tmp_path / "out", x=Ones((10,), folder)), executor="ray")
    assert f"the Ray node {socket.gethostname()}: expected pet-surgery 99.0, " in str(caught.value)
    assert f"found pet-surgery {__version__}. Install the same version" in str(caught.value)
    assert names_of(tmp_path) == ["marks"]


def test_an_address_is_refused_where_this_process_is_connected(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="a connection to Ray that is there already"):
        execute(plan_of(tmp_path / "out", x=Ones((10,), folder)), executor="ray://127.0.0.1:1")
    assert names_of(tmp_path) == ["marks"]
