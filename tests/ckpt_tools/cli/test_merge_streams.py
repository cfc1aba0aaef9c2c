"""Where output, messages and progress go when streams are terminals, closed, full, or broken pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from commands import PET_MERGE, environment, in_shell, pet_merge
from merge_cases import factors, llama, mindpet, random, save

ARGUMENTS = ("base.ckpt", "lora.ckpt", "--alpha", "8", "--force")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "base.ckpt", llama())
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    return tmp_path


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work for longer than a progress bar waits before it appears."""
    folder, size, rank = tmp_path_factory.mktemp("slow"), 2048, 768
    save(folder / "base.ckpt", {f"w{i}.weight": random(i, size, size, dtype="bf16") for i in range(4)})
    a, b = random(8, rank, size, dtype="bf16"), random(9, size, rank, dtype="bf16")
    save(folder / "lora.ckpt", {f"w{i}.lora_{half}": array for i in range(4) for half, array in (("a", a), ("b", b))})
    return folder


def on_a_terminal(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """pet-merge with stderr on a pseudo-terminal: (exit code, what appeared there)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # else it is 0 columns wide
    process = subprocess.Popen(
        [*PET_MERGE, *arguments],
        cwd=folder,
        env=environment({"TERM": "xterm", **variables}),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not data:
            break
        seen += data
    os.close(ours)
    return process.wait(), seen.decode()


def test_a_bar_with_rate_and_time_left_appears_on_a_terminal(slow: Path) -> None:
    code, seen = on_a_terminal(slow, *ARGUMENTS, "--threads", "1")
    assert code == 0
    assert "writing:" in seen
    assert "B/s" in seen
    assert "<" in seen, "the time left"


def test_no_bar_appears_when_quiet(slow: Path) -> None:
    assert on_a_terminal(slow, *ARGUMENTS, "--threads", "1", "-q") == (0, "")


def test_no_bar_appears_off_a_terminal(slow: Path) -> None:
    result = pet_merge(*ARGUMENTS, "--threads", "1", cwd=slow)
    assert (result.returncode, result.stderr) == (0, "")


def test_errors_are_coloured_on_a_terminal_unless_no_color_is_set(folder: Path) -> None:
    code, seen = on_a_terminal(folder, "missing.ckpt")
    assert code == 3
    assert "\x1b[31m" in seen
    code, seen = on_a_terminal(folder, "missing.ckpt", NO_COLOR="1")
    assert code == 3
    assert seen.startswith("error: missing.ckpt")
    assert "\x1b" not in seen


def test_errors_are_plain_off_a_terminal(folder: Path) -> None:
    assert "\x1b" not in pet_merge("missing.ckpt", cwd=folder).stderr


@pytest.mark.parametrize(
    ("redirection", "word"), [(">&-", "closed"), (">/dev/full", "no space left"), ("| true", "broken pipe")]
)
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_report_that_cannot_be_printed_exits_7_and_the_output_is_complete(
    folder: Path, redirection: str, word: str, option: str
) -> None:
    expected = pet_merge(*ARGUMENTS, "-o", "expected.ckpt", cwd=folder)
    assert expected.returncode == 0
    # `true` is gone long before the report is printed; the status of a pipe is that of its end.
    script = f'("$@"; echo $? >code) {redirection}; exit $(cat code)' if "|" in redirection else f'"$@" {redirection}'
    result = in_shell(script, *ARGUMENTS, *filter(None, [option]), "-o", "out.ckpt", cwd=folder)
    assert result.returncode == 7
    assert "Traceback" not in result.stderr
    assert word in result.stderr
    assert "complete" in result.stderr
    assert (folder / "out.ckpt").read_bytes() == (folder / "expected.ckpt").read_bytes()


def test_a_quiet_run_does_not_miss_its_stdout(folder: Path) -> None:
    result = in_shell('"$@" >&-', *ARGUMENTS, "-q", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_end_up_in_the_output(folder: Path, streams: str) -> None:
    assert pet_merge(*ARGUMENTS, "-o", "expected.ckpt", cwd=folder).returncode == 0
    result = in_shell(f'"$@" {streams}', *ARGUMENTS, "-o", "out.ckpt", cwd=folder)
    assert result.returncode == (7 if ">&- " in f" {streams} ".replace("2>&-", "") else 0)
    assert (folder / "out.ckpt").read_bytes() == (folder / "expected.ckpt").read_bytes()


@pytest.mark.parametrize("page", ["--help", "--version"])
def test_a_page_that_nobody_reads_is_no_bug(folder: Path, page: str) -> None:
    script = '("$@"; echo $? >code) | true; exit $(cat code)'
    result = in_shell(script, page, cwd=folder)
    assert result.returncode in (0, 7)  # 0 where the page fitted into the pipe before its end was closed
    assert result.stderr == ""


def test_errors_that_nobody_reads_keep_their_exit_code(folder: Path) -> None:
    result = in_shell('("$@" 2>&1; echo $? >code) | true; exit $(cat code)', "missing.ckpt", cwd=folder)
    assert result.returncode == 3


def test_progress_and_messages_leave_stdout_to_the_report(slow: Path) -> None:
    ours, theirs = pty.openpty()
    result = subprocess.run(
        [*PET_MERGE, *ARGUMENTS, "--json", "--threads", "1"],
        cwd=slow,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    os.close(ours)
    assert len(json.loads(result.stdout)["weights"]) == 4
