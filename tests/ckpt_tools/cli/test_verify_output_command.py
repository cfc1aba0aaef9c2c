"""pet-verify of an output by itself, as a user meets it: streams, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command, Outcome, run_here
from merge_cases import BASE, write

from ckpt_tools import transform
from ckpt_tools.cli.verify import verify_command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    write(tmp_path / "base.ckpt", BASE)
    transform(tmp_path / "base.ckpt", output=tmp_path / "out.ckpt")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        code = run_here(verify_command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_an_output_that_is_as_it_was_written_exits_0(command: Command) -> None:
    code, out, err = command("out.ckpt")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("verified out.ckpt: it is as pet-surgery ")
    assert lines[1].startswith(f"  tensors    {len(BASE)}, ")
    assert lines[2] == "  manifest   out.pet-manifest.json, of a transform"


def test_json_is_one_object_and_quiet_prints_nothing(command: Command) -> None:
    code, out, err = command("out.ckpt", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["command"] == "verify-output"
    assert command("out.ckpt", "-q") == (0, "", "")


def test_a_changed_output_exits_6_and_names_what_differs(command: Command, tmp_path: Path) -> None:
    data = bytearray((tmp_path / "out.ckpt").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out.ckpt").write_bytes(data)
    code, out, err = command("out.ckpt", "--json")
    assert (code, out) == (6, "")
    assert err.startswith("error: lm_head.weight: expected ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["base.ckpt"], 3, "base.pet-manifest.json"),
        (["nowhere.ckpt"], 3, "nowhere.ckpt"),
        (["out.ckpt", "--alpha", "8"], 2, "--alpha"),
        (["out.ckpt", "--no-check-crc"], 2, "--no-check-crc"),
        (["out.ckpt", "--signature", "x.sig"], 2, "--public-key or --sign-key"),
        (["base.ckpt", "out.ckpt", "--public-key", "x.pem"], 2, "the output alone"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_compared_has_the_exit_code_of_its_kind(
    command: Command, arguments: list[str], code: int, said: str
) -> None:
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
