"""pet-transform as a shell runs it: exit codes, messages, what goes to which stream, and runs that are cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, Outcome, environment, run_here, wait_until
from merge_cases import add_crc, contents, names_of, random, save, tree
from rank_folders import assert_same_arrays, read_arrays, strategy_of
from transform_cases import ROWS, TENSORS, Held, write_case

from ckpt_tools.cli.transform import transform_command
from ckpt_tools.layout.model import Layout
from surgery.version import __version__

BOTH = ("in", "--src-strategy", "src.ckpt", "--dst-strategy", "dst.ckpt")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """pet-transform in a folder with ranks in `in` and two strategies: (exit code, stdout, stderr)."""
    write_case(tmp_path)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        code = run_here(transform_command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ckpt_tools.cli.transform", *arguments],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_transform_prints_a_summary_and_exits_0(tmp_path: Path) -> None:
    write_case(tmp_path)
    code, out, err = finish(start(tmp_path, *BOTH, "-o", "out"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "transformed in -> out"
    assert lines[1] == "  layout     4 ranks (src.ckpt), step 3_2 -> 2 ranks (dst.ckpt)"
    assert lines[2] == "  tensors    4; 3 of them cut otherwise"
    assert "3 files" in lines[3]
    assert len(lines) == 4


def test_a_part_says_what_is_kept_and_the_last_call_what_it_took_over(command: Command, tmp_path: Path) -> None:
    code, out, err = command(*BOTH, "-o", "out", "--ranks", "1")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == (
        "  kept       ranks 1, for the same command without --ranks, which publishes the output"
    )
    assert names_of(tmp_path) == [".out.pet-surgery", "dst.ckpt", "in", "src.ckpt"]
    code, out, err = command(*BOTH, "-o", "out")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "  took over  1 file that earlier runs completed"
    assert names_of(tmp_path) == ["dst.ckpt", "in", "out", "src.ckpt"]


def test_json_is_one_line_on_stdout_and_warnings_go_to_stderr(command: Command, tmp_path: Path) -> None:
    def change(rank: int, held: Held) -> None:
        if rank:
            del held["norm.weight"]

    write_case(tmp_path / "redundant", change=change)
    code, out, err = command("redundant/in", "--src-strategy", "src.ckpt", "-o", "out.ckpt", "--json")
    assert code == 0
    assert out.count("\n") == 1
    report = json.loads(out)
    assert (report["command"], report["version"], report["dst_ranks"]) == ("transform", __version__, 0)
    assert [f"warning: {text}\n" for text in report["warnings"]] == err.splitlines(keepends=True)
    assert len(report["warnings"]) == 1


def test_a_dry_run_prints_the_plan_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    before = tree(tmp_path)
    code, out, err = command(*BOTH, "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("would transform in -> in-transformed\n")
    for word in ("layout", "tensors", "reads", "writes", "free", "memory"):
        assert word in out
    assert tree(tmp_path) == before


def test_every_option_reaches_the_transform(command: Command, tmp_path: Path) -> None:
    for file in (tmp_path / "in").rglob("*.ckpt"):
        add_crc(file)
    code, out, err = command(
        *(*BOTH, "--prefix", "x_", "--step", "3_2", "--dtype", "fp32", "--format", "safetensors", "--names", "keep"),
        *("--replicated", "a*", "--replicated", "b*", "--allow-missing", "c*", "--allow-unused", "d*", "--check-crc"),
        *("--check-replicas", "--allow-nonfinite", "-o", "out", "--threads", "1", "--max-memory", "1GiB", "--json"),
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["files"] == ["rank_0/x_0.safetensors", "rank_1/x_1.safetensors", "pet-manifest.json"]
    code, out, _ = command("in", "--src-strategy", "src.ckpt", "-o", "whole", "--max-shard-size", "100B", "--json")
    assert code == 0
    assert len(json.loads(out)["files"]) > 2
    assert command("out", "--src-strategy", "dst.ckpt", "-o", "whole", "--force", "-q") == (0, "", "")
    expected = {name: array if array.dtype.kind == "i" else array.astype("float32") for name, array in TENSORS.items()}
    assert_same_arrays(read_arrays(tmp_path / "whole"), expected)


def test_what_was_dropped_and_missed_is_summed_up(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "other.ckpt", {f"w{number}": random(number, 2) for number in range(5)})
    patterns = ("--allow-unused", "w*", "--allow-missing", "*")
    code, out, _ = command(
        "other.ckpt", "--dst-strategy", "dst.ckpt", "-o", "out", *patterns, "--format", "safetensors"
    )
    assert code == 0
    assert "  dropped    5: w0, w1, w2, ...\n" in out
    assert "  missing    3: embedding.weight, layer.weight, norm.weight\n" in out


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_opens_with_examples_and_has_every_option(command: Command, option: str) -> None:
    code, out, err = command(option)
    assert (code, err) == (0, "")
    assert out.index("Examples:") < min(out.index("Options:"), 200)
    for parameter in transform_command.params:
        if parameter.name != "source":
            assert parameter.opts[-1] in out
            assert getattr(parameter, "help", "")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ()),
        (2, ("in", "--dtype", "int8")),
        (2, ("in", "-o", "out")),
        (3, ("nowhere", "-o", "out")),
        (3, ("in", "--src-strategy", "nowhere", "-o", "out")),
        (4, ("in", "--src-strategy", "in/rank_0/llama_rank_0-3_2.ckpt", "-o", "out")),
        (5, ("in", "--src-strategy", "dst.ckpt", "-o", "out")),
        (7, (*BOTH, "-o", "out", "--max-memory", "1KB")),
        (8, (*BOTH, "-o", "there")),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(
    command: Command, tmp_path: Path, code: int, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "there").mkdir()
    before = tree(tmp_path)
    found, out, err = command(*arguments)
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    assert "rror: " in err
    assert tree(tmp_path) == before


def test_every_problem_is_a_line_of_its_own(command: Command, tmp_path: Path) -> None:
    for side in ("src", "dst"):
        (tmp_path / f"{side}.ckpt").write_bytes(b"")
    code, _, err = command(*BOTH, "-o", "out")
    assert code == 4
    words = [line.split(": ") for line in err.splitlines()]
    assert [(start, Path(where).name) for start, where, *_ in words] == [("error", "src.ckpt"), ("error", "dst.ckpt")]


def large(folder: Path) -> Path:
    """Ranks whose writing takes a moment."""
    tensors = {f"{number}.weight": random(number, 1024, 1024) for number in range(8)}
    source, target = (strategy_of({name: Layout((count,), ROWS) for name in tensors}) for count in (2, 8))
    return write_case(folder, tensors=tensors, source=source, target=target)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_part_that_was_cut_off_keeps_what_was_complete(tmp_path: Path, number: int) -> None:
    large(tmp_path)
    process = start(tmp_path, *BOTH, "-o", "out", "--threads", "1", "--ranks", "0-7")
    hidden = tmp_path / ".out.pet-surgery"
    wait_until(lambda: any(hidden.rglob("checkpoint_*.ckpt")), process)
    process.send_signal(number)
    code, _, err = finish(process)
    if number == signal.SIGINT:
        assert (code, err.strip()) == (130, "error: interrupted; what was complete is kept")
        assert not list(hidden.glob("parts/*"))
    assert not (tmp_path / "out").exists()
    done = {str(path.relative_to(hidden / "content")) for path in hidden.rglob("checkpoint_*.ckpt")}
    code, out, err = finish(start(tmp_path, *BOTH, "-o", "out", "--json"))
    assert (code, err) == (0, "")
    assert set(json.loads(out)["resumed"]) == done
    assert len(list((tmp_path / "out").rglob("*.ckpt"))) == 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_cut_off_leaves_no_output_and_a_killed_one_is_taken_up(tmp_path: Path, number: int) -> None:
    large(tmp_path)
    assert finish(start(tmp_path, *BOTH, "-o", "expected"))[0] == 0
    process = start(tmp_path, *BOTH, "-o", "out", "--threads", "1")
    hidden = tmp_path / ".out.pet-surgery"
    wait_until(lambda: any(hidden.rglob("checkpoint_*.ckpt")), process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert (code, err.strip()) == (130, "error: interrupted; nothing was written")
        assert not hidden.exists()
        return
    assert code == -signal.SIGKILL
    code, out, err = finish(start(tmp_path, *BOTH, "-o", "out", "--json"))
    assert (code, err) == (0, "")
    resumed = json.loads(out)["resumed"]
    assert 0 < len(resumed) <= 8
    assert set(resumed) <= set(json.loads(out)["files"])
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert not hidden.exists()
