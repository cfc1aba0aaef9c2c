"""pet-split as a shell runs it: summary, JSON, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, Outcome, environment, run_here
from merge_cases import names_of, random, save
from split_cases import BASE, LORA, combined

from ckpt_tools.cli.split import split_command
from surgery.version import __version__


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """pet-split in a folder with `tuned.ckpt`: (exit code, stdout, stderr)."""
    combined(tmp_path, LORA["mindpet"])
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        code = run_here(split_command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_split_prints_a_summary_and_goes_beside_by_default(command: Command, tmp_path: Path) -> None:
    code, out, err = command("tuned.ckpt", "--alpha", "8")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "split tuned.ckpt -> tuned-adapter"
    assert lines[1:5] == [
        "  delta      lora; 4 LoRA A, 4 LoRA B",
        "  config     rank 4, alpha 8",
        f"  left       {len(BASE)} tensors of the base",
        "  dropped    16 optimizer state, 2 training scalar",
    ]
    assert lines[5].startswith("  wrote      ")
    assert names_of(tmp_path / "tuned-adapter") == ["adapter_config.json", "adapter_model.ckpt", "pet-manifest.json"]


def test_a_dry_run_writes_nothing(command: Command, tmp_path: Path) -> None:
    code, out, err = command("tuned.ckpt", "--alpha", "8", "--dry-run", "--remainder", "rest.ckpt")
    assert (code, err) == (0, "")
    assert out.startswith("would split tuned.ckpt -> tuned-adapter, the rest -> rest.ckpt\n")
    assert names_of(tmp_path) == ["tuned.ckpt"]


def test_json_is_one_object_and_a_missing_alpha_a_warning(command: Command) -> None:
    code, out, err = command("tuned.ckpt", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["command"], report["version"], report["config"]) == ("split", __version__, None)
    assert err.startswith("warning: tuned.ckpt: no alpha is known")


def test_an_extraction_shows_its_proof(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", BASE)
    after = dict(BASE)
    name = "model.layers.0.attention.wq.weight"
    after[name] = (BASE[name].astype("float32") + random(1, 16, 2) @ random(2, 2, 16)).astype(BASE[name].dtype)
    save(tmp_path / "full.ckpt", after)
    code, out, err = command("full.ckpt", "--base", "base.ckpt", "--rank", "2", "-o", "extracted")
    assert (code, err) == (0, "")
    for word in ("rank       2 to 2", "energy     kept 99", "error      of merging back"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nothing.ckpt",), 3),
        (("tuned.ckpt", "--pet-type", "ptuning2"), 5),
        (("tuned.ckpt", "--format", "peft"), 5),
        (("tuned.ckpt", "--format", "gguf"), 2),
        (("tuned.ckpt", "--energy", "2"), 2),
        (("tuned.ckpt", "-o", "tuned.ckpt"), 2),
    ],
)
def test_exit_codes(command: Command, tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    before = names_of(tmp_path)
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert "rror: " in err
    assert names_of(tmp_path) == before


def test_help_has_examples_and_needs_no_numpy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ckpt_tools.cli.split", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert "pet-split trained.ckpt --alpha 16 -o adapter/" in result.stdout
    assert "numpy" not in result.stderr
