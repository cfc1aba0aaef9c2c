"""Runs that are interrupted, killed, repeated at once, or left without room: the old state or the new one, no rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import PET_MERGE, environment, in_shell, pet_merge, start_pet_merge, wait_until
from merge_cases import contents, factors, llama, mindpet, random, save, tree, write_folder

SHARDS, SIZE, RANK = 4, 1024, 512


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of four shards, each with work for a moment, and what a run makes of it undisturbed."""
    folder = tmp_path_factory.mktemp("inputs")
    base = {f"w{i}.weight": random(i, SIZE, SIZE, dtype="bf16") for i in range(SHARDS)}
    write_folder(folder / "base", base, shards=SHARDS)
    a, b = random(8, RANK, SIZE, dtype="bf16"), random(9, SIZE, RANK, dtype="bf16")
    save(folder / "lora.safetensors", {f"{name[:-7]}.lora_{x}": f for name in base for x, f in (("a", a), ("b", b))})
    (folder / "base" / "tokenizer.json").write_text("{}")
    assert pet_merge(*arguments(folder), "-o", folder / "expected", "-q").returncode == 0
    return folder


def arguments(inputs: Path) -> tuple[str, ...]:
    return str(inputs / "base"), str(inputs / "lora.safetensors"), "--alpha", "8", "--threads", "1"


def hidden(output: Path) -> Path:
    return output.parent / f".{output.name}.pet-surgery"


@pytest.fixture
def stopped(inputs: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that writes `tmp_path / "out"` and was halted when the first of its shards was complete."""
    output = tmp_path / "out"
    process = start_pet_merge(*arguments(inputs), "-o", output)
    wait_until(lambda: any((hidden(output) / "content").glob("*.safetensors")), process)
    process.send_signal(signal.SIGSTOP)
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.communicate()


def go_on(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_130_and_nothing_is_left(
    stopped: subprocess.Popen[str], inputs: Path, tmp_path: Path, number: int
) -> None:
    before = tree(inputs)
    stopped.send_signal(number)
    code, err = go_on(stopped)
    assert code == 130
    assert err.strip() == "error: interrupted; nothing was written"
    assert list(tmp_path.iterdir()) == []
    assert tree(inputs) == before


@pytest.mark.parametrize("suffix", ["", ".ckpt"])
def test_an_interrupted_run_leaves_an_existing_output_as_it_was(inputs: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    assert pet_merge(*arguments(inputs), "-o", output, "-q").returncode == 0
    before = tree(tmp_path)
    process = start_pet_merge(*arguments(inputs), "--dtype", "fp32", "-o", output, "--force")
    wait_until(hidden(output).exists, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert tree(tmp_path) == before


def test_folders_that_an_interrupted_run_made_are_removed(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "deep" / "out"
    process = start_pet_merge(*arguments(inputs), "-o", output)
    wait_until(hidden(output).exists, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_is_taken_up_again_and_the_result_is_the_same(
    stopped: subprocess.Popen[str], inputs: Path, tmp_path: Path
) -> None:
    stopped.kill()
    stopped.wait()
    done = sorted(path.name for path in (hidden(tmp_path / "out") / "content").glob("*.safetensors"))
    assert done
    assert not (tmp_path / "out").exists()
    result = pet_merge(*arguments(inputs), "-o", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["resumed"] == done
    assert contents(tmp_path / "out") == contents(inputs / "expected")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    whole = json.loads(pet_merge(*arguments(inputs), "-o", tmp_path / "again", "--json").stdout)
    assert report["weights"] == whole["weights"], "what was measured before the kill is in the report too"


def test_what_a_killed_run_left_is_not_taken_for_another_merge(
    stopped: subprocess.Popen[str], inputs: Path, tmp_path: Path
) -> None:
    stopped.kill()
    stopped.wait()
    result = pet_merge(*arguments(inputs), "--dtype", "fp32", "-o", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["resumed"] == []
    assert contents(tmp_path / "out") != contents(inputs / "expected")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_unreadable_is_made_again(
    stopped: subprocess.Popen[str], inputs: Path, tmp_path: Path
) -> None:
    stopped.kill()
    stopped.wait()
    # As a loss of power leaves files that were never synced.
    for path in hidden(tmp_path / "out").glob("*.json"):
        path.write_bytes(b"")
    result = pet_merge(*arguments(inputs), "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out") == contents(inputs / "expected")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_runs_at_once_the_second_is_refused_and_the_first_goes_on(
    stopped: subprocess.Popen[str], inputs: Path, tmp_path: Path
) -> None:
    second = pet_merge(*arguments(inputs), "-o", tmp_path / "out")
    assert second.returncode == 8
    assert "another run holds it" in second.stderr
    assert go_on(stopped) == (0, "")
    assert contents(tmp_path / "out") == contents(inputs / "expected")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_appears_during_the_run_is_not_replaced(stopped: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    code, err = go_on(stopped)
    assert code == 8
    assert "it exists already" in err
    assert contents(tmp_path) == {"out/thesis.tex": b"years"}


def test_an_input_that_changes_during_the_run_calls_it_off(inputs: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes((inputs / "lora.safetensors").read_bytes())
    (tmp_path / "results").mkdir()
    output = tmp_path / "results" / "out"
    process = start_pet_merge(inputs / "base", lora, "--alpha", "8", "--threads", "1", "-o", output)
    wait_until(hidden(output).exists, process)
    os.utime(lora)
    _, err = process.communicate()
    assert process.returncode == 7
    assert "it changed while it was being read" in err
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize("output", ["out", "out.ckpt"])
def test_a_limit_on_the_size_of_files_ends_a_run_with_7_and_nothing_is_left(
    inputs: Path, tmp_path: Path, output: str
) -> None:
    # ulimit counts 1,024 bytes; the kernel sends SIGXFSZ besides, which must not kill the process.
    result = in_shell('ulimit -f 100; "$@"', *arguments(inputs), "-o", tmp_path / output)
    assert result.returncode == 7, result.stderr
    assert result.stderr.startswith("error: ")
    assert "too large" in result.stderr
    assert list(tmp_path.iterdir()) == []


def on_a_small_disk(tmp_path: Path, script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script where `$disk` is a disk of 1 MiB, in a namespace of its own; skip where that is not allowed."""
    probe = ["unshare", "--map-root-user", "--mount", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine allows no mounts")
    (tmp_path / "disk").mkdir()
    full = f'mount -t tmpfs -o size=1m,nr_inodes=20 none "$disk" && {{ {script}; }}'
    return subprocess.run(
        [*probe[:-1], "bash", "-c", full, "bash", *PET_MERGE, *map(str, arguments)],
        env=environment({"disk": str(tmp_path / "disk")}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(inputs: Path, tmp_path: Path) -> None:
    script = '"$@" -o "$disk/out"; echo $?; ls -A "$disk"'
    result = on_a_small_disk(tmp_path, script, *arguments(inputs))
    assert result.stdout.split() == ["7"]
    assert "room for" in result.stderr


def test_a_disk_that_fills_up_meanwhile_ends_a_run_with_7_and_nothing_is_left(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", llama())
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    # No number for another file is left: what is written at all is written, and then there is no room.
    fill = 'for i in $(seq {}); do : >"$disk/$i"; done; rm -f "$disk/1"; '
    for free in (1, 3, 5, 8, 10):
        script = fill.format(20) + "".join(f'rm -f "$disk/{i}"; ' for i in range(1, free + 1))
        script += (
            'before=$(ls -A "$disk"); "$@" -o "$disk/out.ckpt"; echo $?; [ "$before" = "$(ls -A "$disk")" ]; echo $?'
        )
        result = on_a_small_disk(tmp_path, script, tmp_path / "base.ckpt", tmp_path / "lora.ckpt", "--alpha", "8", "-q")
        code, same = result.stdout.split()
        assert (code, same) in {("7", "0"), ("0", "1")}, result.stderr
        if code == "7":
            assert "no space left" in result.stderr
        (tmp_path / "disk").rmdir()
    assert code == "0"
