"""pet-inject as a shell runs it: exit codes, messages, and what goes to which stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import Command, Outcome, environment, run_here
from inject_cases import LORA, WEIGHTS
from merge_cases import names_of, write

from ckpt_tools.cli.inject import inject_command
from surgery.version import __version__

ARGUMENTS = ("base.ckpt", "--config", "run.yaml", "-o", "out.ckpt")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """pet-inject in a folder with a base and a run's YAML: (exit code, stdout, stderr)."""
    write(tmp_path / "base.ckpt", WEIGHTS)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"model_config": {"pet_config": LORA}}}))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        code = run_here(inject_command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_an_injection_prints_a_summary_and_exits_0(command: Command, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ckpt_tools.cli.inject", *ARGUMENTS],
        cwd=tmp_path,
        env=environment(),
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert lines[:5] == [
        "injected LoRA (run.yaml) into base.ckpt -> out.ckpt",
        "  layers     4: 2 wq, 2 wv",
        "  added      8 parameters, seed 0",
        f"  copied     {len(WEIGHTS)} tensors",
        "  trainable  8 parameters, 512 numbers (8.23 %)",
    ]
    assert len(lines) == 6
    assert names_of(tmp_path) == [
        "base.ckpt",
        "out.adapter_config.json",
        "out.ckpt",
        "out.pet-manifest.json",
        "out.trainable_parameters.json",
        "run.yaml",
    ]


def test_json_is_one_line_on_stdout_and_warnings_go_to_stderr(command: Command, tmp_path: Path) -> None:
    prefix = {"pet_type": "ptuning2", "pre_seq_len": 61, "num_layers": 2, "num_heads": 4, "kv_channels": 4}
    (tmp_path / "prefix.yaml").write_text(yaml.safe_dump(prefix))
    code, out, err = command("base.ckpt", "--config", "prefix.yaml", "--json", "-o", "out.ckpt")
    assert code == 0
    assert out.count("\n") == 1
    report = json.loads(out)
    assert (report["command"], report["version"], report["pet_type"]) == ("inject", __version__, "ptuning2")
    assert err == f"warning: {report['warnings'][0]}\n"
    assert "longer than 60" in err


def test_quiet_prints_nothing_and_a_dry_run_writes_nothing(command: Command, tmp_path: Path) -> None:
    assert command(*ARGUMENTS, "-q", "--dry-run") == (0, "", "")
    code, out, err = command(*ARGUMENTS, "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("would inject LoRA (run.yaml) into base.ckpt -> out.ckpt\n")
    assert names_of(tmp_path) == ["base.ckpt", "run.yaml"]


def test_the_default_output_is_called_after_the_base(command: Command, tmp_path: Path) -> None:
    assert command("base.ckpt", "--config", "run.yaml", "-q")[0] == 0
    assert command("base.ckpt", "--config", "run.yaml", "-q", "--only-delta")[0] == 0
    assert {"base-injected.ckpt", "base-delta.ckpt"} <= set(names_of(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("base.ckpt",), 2, "--config"),
        (("none.ckpt", "--config", "run.yaml"), 3, "none.ckpt"),
        (("base.ckpt", "--config", "none.yaml"), 3, "none.yaml"),
        (("run.yaml", "--config", "run.yaml"), 4, "run.yaml"),
        (("base.ckpt", "--config", "base.ckpt"), 4, "base.ckpt"),
        (("base.ckpt", "--config", "run.yaml", "-o", "base.ckpt", "--force"), 2, "it is, or holds, the input"),
        (("base.ckpt", "--config", "run.yaml", "-o", "run.yaml"), 2, "it is, or holds, the input"),
        (("base.ckpt", "--config", "run.yaml", "--check-network"), 2, "--check-network"),
    ],
)
def test_exit_codes_tell_what_went_wrong(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    if "--check-network" in arguments:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(LORA))
    before = names_of(tmp_path)
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert names_of(tmp_path) == before


def test_a_rule_that_selects_nothing_exits_5_with_near_names(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**LORA, "target_modules": ".*wqkv"}))
    code, _, err = command(*ARGUMENTS)
    assert code == 5
    assert "Near names: wk, wq" in err


def test_an_output_that_exists_exits_8(command: Command) -> None:
    assert command(*ARGUMENTS, "-q")[0] == 0
    code, _, err = command(*ARGUMENTS)
    assert code == 8
    assert "--force" in err
    assert command(*ARGUMENTS, "-q", "--force")[0] == 0
