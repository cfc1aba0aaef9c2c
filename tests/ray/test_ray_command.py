"""`--executor` as a shell sees it: a cluster by its address, one of the command's own, and none."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import pet_merge, start_pet_merge, wait_until
from merge_cases import BASE, PAIRS, contents, mindpet, names_of, random, save, write, write_folder

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ALPHA = ("--alpha", "8", "--threads", "1")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_folder(tmp_path / "base", BASE, shards=2)
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    return tmp_path


def raylets() -> set[Path]:
    """The processes of this machine that are a node of some Ray cluster."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if path.read_text().strip() == "raylet":
                found.add(path)
    return found


def test_the_cluster_of_the_environment_is_used_and_stdout_is_one_line(inputs: Path, cluster: Cluster) -> None:
    arguments = (inputs / "base", inputs / "lora.ckpt", *ALPHA)
    assert pet_merge(*arguments, "-o", inputs / "local", "-q").returncode == 0
    env = {"RAY_ADDRESS": cluster.address}
    run = pet_merge(*arguments, "-o", inputs / "out", "--json", "--executor", "ray", env=env)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert json.loads(run.stdout)["output"] == str(inputs / "out")
    assert run.stdout.count("\n") == 1
    assert contents(inputs / "out") == contents(inputs / "local")


def test_a_cluster_is_reached_through_its_client_server(inputs: Path, client_address: str) -> None:
    arguments = (inputs / "base", inputs / "lora.ckpt", *ALPHA, "-q")
    assert pet_merge(*arguments, "-o", inputs / "local").returncode == 0
    run = pet_merge(*arguments, "-o", inputs / "out", "--executor", client_address)
    if run.returncode == 7:  # Ray starts a process for each client, and gives it 30 s: a busy machine may need more
        run = pet_merge(*arguments, "-o", inputs / "out", "--executor", client_address)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert contents(inputs / "out") == contents(inputs / "local")


def test_a_cluster_that_the_command_starts_ends_with_it(inputs: Path) -> None:
    before = raylets()
    arguments = (inputs / "base", inputs / "lora.ckpt", *ALPHA, "-q")
    assert pet_merge(*arguments, "-o", inputs / "local").returncode == 0
    run = pet_merge(*arguments, "-o", inputs / "out", "--executor", "ray", env={"RAY_ADDRESS": "local"})
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert contents(inputs / "out") == contents(inputs / "local")
    assert raylets() <= before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nobody_answers_is_told(inputs: Path, address: str) -> None:
    executor = address if address.startswith("ray://") else "ray"
    env = {} if executor == address else {"RAY_ADDRESS": address}
    arguments = (inputs / "base", inputs / "lora.ckpt", *ALPHA, "-o", inputs / "out", "--executor", executor)
    run = pet_merge(*arguments, env=env)
    assert run.returncode == 7, run.stderr
    assert run.stderr.startswith("error: --executor ray")
    assert f"{address}: expected a Ray cluster that answers, found [Errno 111] Connection refused." in run.stderr
    assert names_of(inputs) == ["base", "lora.ckpt"]


def test_an_error_on_a_worker_has_its_exit_code(inputs: Path, cluster: Cluster) -> None:
    write_folder(inputs / "broken", BASE | {"lm_head.weight": BASE["lm_head.weight"] * float("nan")}, shards=2)
    arguments = (inputs / "broken", inputs / "lora.ckpt", *ALPHA, "-o", inputs / "out")
    local = pet_merge(*arguments)
    run = pet_merge(*arguments, "--executor", "ray", env={"RAY_ADDRESS": cluster.address})
    assert (run.returncode, run.stdout, run.stderr) == (5, "", local.stderr)
    assert names_of(inputs) == ["base", "broken", "lora.ckpt"]


def test_sigterm_behind_which_ray_has_a_handler_ends_the_run_with_130_and_leaves_nothing(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    base = {f"w{i}.weight": random(i, 1024, 1024, dtype="bf16") for i in range(8)}
    write_folder(tmp_path / "base", base, shards=8)
    a, b = random(8, 512, 1024, dtype="bf16"), random(9, 1024, 512, dtype="bf16")
    save(tmp_path / "lora.safetensors", {f"{name[:-7]}.lora_{x}": f for name in base for x, f in (("a", a), ("b", b))})
    arguments = (tmp_path / "base", tmp_path / "lora.safetensors", *ALPHA, "-o", tmp_path / "out")
    process = start_pet_merge(*arguments, "--executor", "ray")
    wait_until(lambda: any((tmp_path / ".out.pet-surgery" / "parts").glob("*/*")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "error: interrupted; nothing was written")
    assert names_of(tmp_path) == ["base", "lora.safetensors"]
