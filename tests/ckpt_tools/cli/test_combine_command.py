"""pet-merge with several adapters and with adapters alone, pet-inspect of a folder of them, as a shell runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command, run_here
from merge_cases import BASE, TARGETS, factors, mindpet, names_of, peft, tree, write, write_peft

from ckpt_tools.cli.inspect import inspect_command
from ckpt_tools.cli.merge import merge_command
from ckpt_tools.cli.verify import verify_command


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        command = {"merge": merge_command, "inspect": inspect_command, "verify": verify_command}[name]
        code = run_here(command, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "base.ckpt", BASE)
    for seed, name in enumerate(("a", "b")):
        write_peft(tmp_path / "served" / name, peft(factors(TARGETS, seed)))
    write(tmp_path / "lora.ckpt", mindpet(factors(TARGETS, 7)))


def test_weights_and_methods_are_options_of_merging_and_proving(shell: Command) -> None:
    told = ("--weight", "0.5", "--weight", "-1", "--method", "dare_ties", "--density", "0.5", "--seed", "3")
    code, out, err = shell("merge", "base.ckpt", "served/a", "served/b", *told, "-o", "out.ckpt")
    assert code == 0
    assert "weight 0.5" in out
    assert "weight -1" in out
    assert "dare_ties, density 0.5, majority by total, seed 3" in out
    assert "which are combined by dare_ties" in err
    assert shell("verify", "base.ckpt", "served/a", "served/b", "out.ckpt", *told, "--strict", "-q")[0] == 0
    other = (*told[:-1], "4")
    assert shell("verify", "base.ckpt", "served/a", "served/b", "out.ckpt", *other, "--strict", "-q")[0] == 6


def test_adapters_alone_become_an_adapter_of_the_first_ones_name(shell: Command) -> None:
    code, out, _ = shell("merge", "--adapters-only", "served/a", "lora.ckpt", "--alpha", "8", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["command"] == "combine"
    assert report["output"] == "a-combined"
    assert names_of(Path("a-combined")) == ["adapter_config.json", "adapter_model.safetensors", "pet-manifest.json"]
    assert shell("merge", "base.ckpt", "a-combined", "-o", "out.ckpt", "-q")[0] == 0


def test_one_adapter_is_resized(shell: Command) -> None:
    code, out, _ = shell("merge", "--adapters-only", "served/a", "--energy", "0.5", "-o", "small")
    assert code == 0
    assert "rank and type lose" in out
    assert "rank       " in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--adapters-only", "served/a", "--src-strategy", "x"), 2, "--src-strategy besides"),
        (("--adapters-only", "served/a", "--verify"), 2, "--verify besides"),
        (("--adapters-only", "served/a", "--format", "iteration"), 2, "keep, ckpt, safetensors, peft"),
        (("--adapters-only", "served/a", "missing"), 3, "missing"),
        (("--adapters-only", "base.ckpt"), 5, "no LoRA matrices"),
        (("--adapters-only", "served/a", "lora.ckpt"), 5, "alpha in none of these places"),
        (("base.ckpt", "served/a", "--method", "ties"), 2, "without --density"),
        (("base.ckpt", "served/a", "--method", "mean"), 2, "Invalid value for '--method'"),
        (("base.ckpt", "served/a", "--format", "slora"), 2, "--adapters-only"),
        (("base.ckpt", "served/a", "--weight", "1", "--weight", "2"), 2, "one, or one for each of 1 adapters"),
    ],
)
def test_mistakes_end_with_the_code_of_the_contract(
    shell: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    before = tree(tmp_path)
    found, out, err = shell("merge", *arguments, "-o", "new")
    assert (found, out) == (code, "")
    assert said in err
    assert tree(tmp_path) == before


def test_a_folder_of_adapters_is_a_table_and_ends_with_5_where_one_is_broken(shell: Command) -> None:
    code, out, _ = shell("inspect", "served")
    assert code == 0
    assert out.startswith("served: a folder of 2 adapters\n")
    assert "cosine" in out
    Path("served/c").mkdir()
    Path("served/c/adapter_config.json").write_text("{")
    code, out, err = shell("inspect", "served")
    assert code == 5
    assert "what is wrong" in out
    assert "1 of 3 adapters" in err
    code, out, _ = shell("inspect", "served", "--json")
    assert code == 5
    assert [bool(adapter["problems"]) for adapter in json.loads(out)["adapters"]] == [False, False, True]
