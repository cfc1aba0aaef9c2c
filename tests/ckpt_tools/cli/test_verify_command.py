"""pet-verify as a shell runs it: exit codes, messages, and what goes to which stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command, Outcome, run_here
from merge_cases import BASE, PAIRS, mindpet, tree, write

from ckpt_tools import merge
from ckpt_tools.cli.verify import verify_command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """pet-verify in a folder with base.ckpt, lora.ckpt and merged.ckpt, at alpha 8: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "base.ckpt", BASE)
    write(tmp_path / "lora.ckpt", mindpet(PAIRS))
    merge("base.ckpt", "lora.ckpt", output="merged.ckpt", alpha=8)

    def call(*arguments: str) -> Outcome:
        code = run_here(verify_command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


FILES = ("base.ckpt", "lora.ckpt", "merged.ckpt")


def test_a_sound_merge_exits_0_and_says_what_was_compared(command: Command, tmp_path: Path) -> None:
    before = tree(tmp_path)
    code, out, err = command(*FILES, "--alpha", "8", "--strict")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "verified merged.ckpt = base.ckpt + lora.ckpt"
    assert "  scaling    2 (the command line)" in out.splitlines()
    assert "  weights    4 changed; 19 equal; 0 cast" in out.splitlines() or "4 changed" in out
    assert tree(tmp_path) == before


def test_a_failed_verification_exits_6_with_problems_on_stderr_and_the_report_on_stdout(command: Command) -> None:
    code, out, err = command(*FILES, "--alpha", "4", "--json")
    assert code == 6
    report = json.loads(out)
    assert (report["command"], report["passed"]) == ("verify", False)
    assert len(report["offenders"]) == 4
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 4


def test_a_failed_verification_prints_no_summary(command: Command) -> None:
    code, out, err = command(*FILES, "--alpha", "4")
    assert (code, out) == (6, "")
    assert "merged twice" in err


def test_ten_offenders_are_told_and_the_rest_counted(command: Command) -> None:
    write(Path("base.ckpt"), {name: array + array.dtype.type(1) for name, array in BASE.items()})
    code, _, err = command(*FILES, "--alpha", "8")
    lines = err.splitlines()
    assert code == 6
    assert "another base" in lines[0]
    assert len(lines) == 12
    assert lines[-1].startswith("error: merged.ckpt: and ")


def test_options_that_contradict_each_other_are_wrong_usage(command: Command) -> None:
    assert command(*FILES, "--alpha", "8", "--strict", "--max-ulp", "1")[0] == 2
    assert command(*FILES, "--alpha", "8", "--sample", "0")[0] == 2


def test_a_missing_file_exits_3_and_an_unknown_scale_5(command: Command) -> None:
    assert command("base.ckpt", "lora.ckpt", "nothing.ckpt", "--alpha", "8")[0] == 3
    assert command(*FILES)[0] == 5


def test_a_sample_says_what_it_promises(command: Command) -> None:
    code, out, _ = command(*FILES, "--alpha", "8", "--sample", "0.5")
    assert code == 0
    assert "a single wrong element with" in out
