"""pet-inspect as a user meets it: tables, streams, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import Command, Outcome, environment, run_here
from hostile import small_file
from merge_cases import factors, llama, mindpet, save
from transform_cases import write_case

from ckpt_tools.cli.folding_names import fold_names, number_ranges
from ckpt_tools.cli.inspect import inspect_command
from ckpt_tools.cli.inspect_summary import summarise
from ckpt_tools.cli.table import Column, table
from ckpt_tools.inspecting import inspect_checkpoint


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    save(tmp_path / "base.ckpt", llama())
    save(tmp_path / "lora.ckpt", mindpet(factors()))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        code = run_here(inspect_command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_alike_layers_share_a_line_and_all_lists_every_tensor(command: Command) -> None:
    code, out, err = command("base.ckpt")
    assert (code, err) == (0, "")
    assert "model.layers.0-1.attention.wq.weight" in out
    assert "model.layers.1.attention.wq.weight" in command("base.ckpt", "--all")[1]
    assert command("base.ckpt", "--full")[1] == command("base.ckpt", "--all")[1]


def test_json_is_one_object_and_warnings_go_to_stderr(command: Command) -> None:
    code, out, err = command("lora.ckpt", "--json", "--spectra")
    report = json.loads(out)
    assert (code, report["command"], len(out.splitlines())) == (0, "inspect", 1)
    assert len(report["pairs"][0]["spectrum"]["singular_values"]) == 4
    assert err.startswith("warning: alpha is unknown")


def test_quiet_prints_nothing(command: Command) -> None:
    assert command("base.ckpt", "-q") == (0, "", "")


def test_a_difference_is_told_and_is_an_exit_code_only_on_demand(command: Command) -> None:
    arrays = llama()
    arrays["lm_head.weight"] = arrays["lm_head.weight"] * 2
    save(Path("other.safetensors"), arrays)
    code, out, err = command("base.ckpt", "other.safetensors")
    assert (code, err) == (0, "")
    assert "they differ" in out
    assert "lm_head.weight" in out
    code, _, err = command("base.ckpt", "other.safetensors", "--exit-code", "-q")
    assert code == 6
    assert "1 tensors that differ" in err
    assert command("base.ckpt", "base.ckpt", "--exit-code", "-q") == (0, "", "")
    assert command("base.ckpt", "--exit-code")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("missing.ckpt",), 3),
        (("base.ckpt", "missing.ckpt"), 3),
        (("picture.png",), 4),
        (("base.ckpt", "--src-strategy", "lora.ckpt"), 4),
        (("base.ckpt", "--src-strategy", "src.ckpt"), 2),
        (("base.ckpt", "src.ckpt"), 2),
        (("in", "base.ckpt"), 2),
        (("base.ckpt", "--step", "1_1"), 2),
        (("base.ckpt", "--names", "hf"), 2),
        (("base.ckpt", "base.ckpt", "--names", "missing.json"), 3),
    ],
)
def test_what_cannot_be_done_has_its_exit_code_and_nothing_on_stdout(
    command: Command, arguments: tuple[str, ...], code: int
) -> None:
    write_case(Path.cwd())
    Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith(("error: ", "Usage"))


def test_names_out_of_files_cannot_steer_the_terminal(command: Command) -> None:
    Path("x.safetensors").write_bytes(small_file({"\x1b[2J\nlayers.0.w": np.zeros(2)}, {"note\x1b[2J": "a\nb\x1b[2J"}))
    Path("y.safetensors").write_bytes(small_file({"\x1b[2Jother": np.zeros(2)}))
    for arguments in (("x.safetensors",), ("x.safetensors", "--all"), ("x.safetensors", "y.safetensors")):
        code, out, _ = command(*arguments)
        assert code == 0
        assert "\x1b" not in out
        assert "\\x1b[2J" in out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(command: Command, tmp_path: Path, width: int) -> None:
    name = "a_very_long_name_of_a_network." * 4
    save(tmp_path / "long.ckpt", {f"{name}layers.{number}.weight": np.zeros((4, 4), "f4") for number in range(3)})
    for path in ("long.ckpt", "lora.ckpt"):
        lines = summarise(inspect_checkpoint(tmp_path / path, spectra=True), width=width).splitlines()
        assert max(map(len, lines)) <= width
    lines = summarise(inspect_checkpoint(tmp_path / "long.ckpt", tmp_path / "lora.ckpt"), width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_numbers_of_layers_are_runs() -> None:
    assert number_ranges([0, 1, 2, 5]) == "0-2,5"
    assert number_ranges([0, 2, 4, 6]) == "0-6/2"
    assert number_ranges([3]) == "3"


def test_a_folded_name_stands_for_no_name_that_is_not_there() -> None:
    names = [f"l.{layer}.e.{expert}.w" for layer in range(3) for expert in range(2 if layer else 3)]
    folded = fold_names((name, None, name) for name in names)
    assert [(name, len(found)) for name, found in folded] == [("l.0.e.0-2.w", 3), ("l.1-2.e.0-1.w", 4)]
    assert [name for name, _ in fold_names((name, None, 0) for name in ("l.01.w", "l.1.w"))] == ["l.01.w", "l.1.w"]


def test_an_empty_column_is_left_out() -> None:
    assert table((Column("a"), Column("b")), [("1", ""), ("2", "")], None) == ["  a", "  1", "  2"]


def test_help_begins_with_examples_and_loads_no_numpy() -> None:
    program = "import sys; sys.argv = ['pet-inspect', '--help']; from ckpt_tools.cli.inspect import main; main()"
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert result.returncode == 0
    assert result.stdout.index("Examples:") < result.stdout.index("Options:")
    assert "numpy" not in result.stderr
