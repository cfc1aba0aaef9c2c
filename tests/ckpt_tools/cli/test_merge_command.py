"""The contract of the command line: exit codes, messages, and what goes to which stream."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from ckpt_bytes import value
from commands import Command, in_shell, pet_merge
from merge_cases import (
    RANK,
    assert_all_merged,
    factors,
    hugging_face,
    hugging_face_name,
    llama,
    mindpet,
    peft,
    random,
    save,
    tree,
    updates,
    write,
    write_peft,
)

from ckpt_tools.cli.merge import merge_command
from surgery.version import __version__

BASE, PAIRS = llama(), factors()


def test_a_merge_prints_a_summary_and_exits_0(command: Command) -> None:
    code, out, err = command("base.ckpt", "lora.ckpt", "--alpha", "8")
    assert (code, err) == (0, "")
    assert out.startswith("merged base.ckpt + lora.ckpt -> base-merged.ckpt\n")
    assert "mindpet; rank 4; scaling 2 (the command line, alpha 8)" in out
    assert "4 weights" in out
    assert_all_merged(Path("base-merged.ckpt"), BASE, updates(PAIRS, 2.0))


def test_every_option_reaches_the_merge(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "more.ckpt", mindpet(factors(["model.layers.9.attention.wq"])))
    code, out, err = command(
        *("base.ckpt", "lora.ckpt", "more.ckpt", "--scaling", "2", "--scaling", "3", "--dtype", "fp32"),
        *("--format", "safetensors", "--max-shard-size", "4KB", "--names", "hf", "--allow-unused", "*layers.9*"),
        *("-o", "out", "--threads", "1", "--max-memory", "100MiB", "--no-check-crc", "--json", "--allow-nonfinite"),
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["format"] == "safetensors"
    assert len(report["files"]) > 2
    assert len(report["dropped"]) == 2
    terms = {hugging_face_name(name): update for name, update in updates(PAIRS, 2.0).items()}
    assert_all_merged(Path("out"), hugging_face(BASE), terms, "fp32")


def test_json_is_one_object_on_stdout_and_nothing_else(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "lora.ckpt", mindpet({name: np.zeros_like(array) for name, array in PAIRS.items()}))
    code, out, err = command("base.ckpt", "lora.ckpt", "--alpha", "8", "--json")
    assert code == 0
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["command"] == "merge"
    assert report["version"] == __version__
    assert report["dry_run"] is False
    assert err.startswith("warning: ")
    assert [f"warning: {text}\n" for text in report["warnings"]] == err.splitlines(keepends=True)
    weight = report["weights"][0]
    assert weight["adapters"][0]["alpha"] == 8
    assert weight["unchanged_share"] == 1.0


def test_json_of_a_dry_run_says_so(command: Command, tmp_path: Path) -> None:
    before = tree(tmp_path)
    code, out, err = command("base.ckpt", "lora.ckpt", "--alpha", "8", "--json", "--dry-run")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["dry_run"] is True
    assert {"bytes_read", "bytes_written", "peak_memory_bytes", "free_disk_bytes", "files"} <= report.keys()
    assert report["weights"][0]["weight_norm"] is None
    assert tree(tmp_path) == before


def test_a_dry_run_prints_the_plan(command: Command) -> None:
    code, out, err = command("base.ckpt", "lora.ckpt", "--alpha", "8", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("would merge base.ckpt + lora.ckpt -> base-merged.ckpt")
    for word in ("folded", "copied", "reads", "writes", "free", "memory"):
        assert word in out


def test_quiet_prints_nothing(command: Command) -> None:
    assert command("base.ckpt", "lora.ckpt", "--alpha", "8", "-q") == (0, "", "")


def test_quiet_json_is_still_json(command: Command) -> None:
    code, out, _ = command("base.ckpt", "lora.ckpt", "--alpha", "8", "-q", "--json")
    assert code == 0
    assert json.loads(out)["output"] == "base-merged.ckpt"


def test_the_version_is_told(command: Command) -> None:
    code, out, err = command("--version")
    assert (code, err) == (0, "")
    assert out == f"pet-merge {__version__}\n"


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_opens_with_examples_and_has_every_option(command: Command, option: str) -> None:
    code, out, err = command(option)
    assert (code, err) == (0, "")
    assert out.index("Examples:") < out.index("Options:")
    assert out.index("Examples:") < 200
    for parameter in merge_command.params:
        if isinstance(parameter, click.Option):
            assert all(name in out for name in parameter.opts)
            assert parameter.help or parameter.name in ("help", "version")
    assert "Exit codes:" in out


def corrupt_yaml(folder: Path) -> None:
    (folder / "run.yaml").write_text("model: [\n  - a\n")


def wrong_shapes(folder: Path) -> None:
    save(folder / "lora.ckpt", {"lm_head.lora_a": random(0, RANK, 7), "lm_head.lora_b": random(1, 9, RANK)})


def prefix(folder: Path) -> None:
    save(folder / "lora.ckpt", {"mindpet_delta_ptuning2_embedding.embedding_table": random(0, 4, 4)})


def poison(folder: Path) -> None:
    pairs = mindpet(factors())
    next(iter(pairs.values()))[0, 0] = np.nan
    save(folder / "lora.ckpt", pairs)


def no_weights(folder: Path) -> None:
    (folder / "empty").mkdir()


def pickle(folder: Path) -> None:
    (folder / "lora.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))


def encrypted(folder: Path) -> None:
    (folder / "lora.ckpt").write_bytes(bytes.fromhex("d85e3a7f22000000") + bytes(100))


def existing(folder: Path) -> None:
    (folder / "base-merged.ckpt").write_text("precious")


def both(folder: Path) -> None:
    save(folder / "lora.ckpt", {**mindpet(PAIRS), "adam_m.x": random(0, 2)})


def nothing(folder: Path) -> None:
    del folder


ALPHA = ("--alpha", "8")
CAUSES = [
    (2, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "--scaling", "1"), "one of the two"),
    (2, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, *ALPHA, *ALPHA), "3 values"),
    (2, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "-o", "x.ckpt", "--format", "safetensors"), "--format"),
    (2, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "-o", "base.ckpt", "--force"), "the input"),
    (2, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "--max-shard-size", "lots"), "size 'lots'"),
    (2, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "--max-memory", "-3"), "size '-3'"),
    (3, nothing, ("bse.ckpt", "lora.ckpt", *ALPHA), "base.ckpt"),
    (3, nothing, ("b" * 300 + ".ckpt", "lora.ckpt", *ALPHA), "too long"),
    (3, nothing, ("base.ckpt", "nowhere/lora.ckpt", *ALPHA), "nowhere: expected a checkpoint"),
    (3, nothing, ("base.ckpt", "lora.ckpt", "--config", "run.yaml"), "run.yaml"),
    (3, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "--names", "names.json"), "names.json"),
    (4, pickle, ("base.ckpt", "lora.ckpt", *ALPHA), "lora.ckpt"),
    (4, encrypted, ("base.ckpt", "lora.ckpt", *ALPHA), "encrypted"),
    (4, no_weights, ("base.ckpt", "empty", *ALPHA), "an empty folder"),
    (4, corrupt_yaml, ("base.ckpt", "lora.ckpt", "--config", "run.yaml"), "run.yaml"),
    (5, nothing, ("base.ckpt", "lora.ckpt"), "alpha in none of these places"),
    (5, nothing, ("base.ckpt", "lora.ckpt", "--alpha", "0"), "other than 0"),
    (5, nothing, ("base.ckpt", "lora.ckpt", "--alpha", "nan"), "other than 0"),
    (5, nothing, ("base.ckpt", "base.ckpt", *ALPHA), "a whole model"),
    (5, nothing, ("base.ckpt", *ALPHA), "no adapter parameters"),
    (5, wrong_shapes, ("base.ckpt", "lora.ckpt", *ALPHA), "shape"),
    (5, prefix, ("base.ckpt", "lora.ckpt", *ALPHA), "changes no weight"),
    (5, poison, ("base.ckpt", "lora.ckpt", *ALPHA), "NaN or Inf"),
    (7, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "--max-memory", "1MB"), "--max-memory"),
    (7, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "-o", "/proc/out.ckpt"), "/proc"),
    (7, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "-o", "/sys/out.ckpt"), "/sys"),
    (7, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "-o", "base.ckpt/out.ckpt"), "base.ckpt"),
    (7, nothing, ("base.ckpt", "lora.ckpt", *ALPHA, "-o", "n" * 300 + ".ckpt"), "too long"),
    (8, existing, ("base.ckpt", "lora.ckpt", *ALPHA), "--force"),
]


@pytest.mark.parametrize(("code", "prepare", "arguments", "message"), CAUSES)
def test_each_cause_has_its_exit_code_and_a_message_that_says_what_to_do(
    command: Command,
    tmp_path: Path,
    code: int,
    prepare: Callable[[Path], None],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    prepare(tmp_path)
    before = tree(tmp_path)
    found, out, err = command(*arguments)
    assert found == code, err
    assert out == ""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), "each problem is one paragraph"
    assert any(word in err for word in message.split("|"))
    assert all(len(line) < 2000 for line in lines)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("base.ckpt", "lora.ckpt", "--alpha", "much"),
        ("base.ckpt", "--dtype", "int8"),
        ("base.ckpt", "--threads", "0"),
        ("base.ckpt", "--frobnicate"),
    ],
)
def test_arguments_that_do_not_parse_exit_2_with_the_usage(command: Command, arguments: tuple[str, ...]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: pet-merge" in err
    assert "Traceback" not in err


def test_all_problems_are_printed_each_on_its_line(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "lora.ckpt", mindpet(factors(["model.layers.8.attention.wq", "model.layers.9.attention.wq"])))
    code, _, err = command("base.ckpt", "lora.ckpt", "--alpha", "8")
    assert code == 5
    assert [line[:7] for line in err.splitlines()] == ["error: "] * 2
    assert "Near names: model.layers." in err


def test_a_bug_exits_1_with_a_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # The one thing that no input should bring about.
    monkeypatch.setattr("ckpt_tools.merging.merge", lambda *args, **options: 1 / 0)
    code, out, err = command("base.ckpt", "lora.ckpt")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError" in err
    assert "please report it" in err


def test_an_overflow_is_told_by_the_error_alone(command: Command, tmp_path: Path) -> None:
    pairs = mindpet(factors())
    for array in pairs.values():
        array[...] = 1e30
    save(tmp_path / "lora.ckpt", pairs)
    code, _, err = command("base.ckpt", "lora.ckpt", "--alpha", "8")
    assert code == 5
    assert [line[:7] for line in err.splitlines()] == ["error: "] * 4


def test_a_peft_folder_needs_no_option(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "base-safetensors", hugging_face(BASE))
    write_peft(tmp_path / "lora", peft(PAIRS))
    code, out, _ = command("base-safetensors", "lora")
    assert code == 0
    assert "scaling 2 (lora/adapter_config.json, alpha 8)" in out or "adapter_config.json, alpha 8" in out
    assert Path("base-safetensors-merged").is_dir()


def test_names_that_an_encoding_lacks_are_printed_and_kept(tmp_path: Path) -> None:
    base = {"größe.weight": random(0, 8, 8), "\u202e.weight": random(1, 2)}
    save(tmp_path / "base.ckpt", base)
    name = os.fsdecode(b"b\xff.ckpt")
    (tmp_path / "base.ckpt").rename(tmp_path / name)
    pair = {"größe.lora_a": random(2, RANK, 8), "größe.lora_b": random(3, 8, RANK)}
    save(tmp_path / "lora.ckpt", pair)
    for number, options in enumerate([("--json",), ()]):
        out = f"out{number}.safetensors"
        result = pet_merge(
            *(name, "lora.ckpt", "--alpha", "4", "-o", out, *options), cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"}
        )
        assert result.returncode == 0, result.stderr
        assert all(line.startswith("warning: ") for line in result.stderr.splitlines())
        if options:
            assert json.loads(result.stdout)["weights"][0]["name"] == "größe.weight"
        assert (tmp_path / out).exists()


def test_names_that_try_to_write_to_the_terminal_are_escaped(command: Command, tmp_path: Path) -> None:
    evil = "a\x1b]0;pwned\x07\n.weight"
    (tmp_path / "evil.ckpt").write_bytes(value(evil, [1], "Float32", b"\0" * 3))
    (tmp_path / "keys.ckpt").write_bytes(value(f"{evil}.lora_a", [2, 2], "Float32", bytes(16)))
    for adapter in ("evil.ckpt", "keys.ckpt"):
        code, _, err = command("base.ckpt", adapter, "--alpha", "8")
        assert code in (4, 5)
        assert "\x1b" not in err
        assert len(err.splitlines()) == 1


def test_the_module_runs_as_a_process(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", mindpet(PAIRS))
    result = pet_merge("base.ckpt", "lora.ckpt", "--alpha", "8", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert_all_merged(tmp_path / "base-merged.ckpt", BASE, updates(PAIRS, 2.0))
    missing = pet_merge("base.ckpt", "lora.ckpt", cwd=tmp_path)
    assert missing.returncode == 5
    assert missing.stderr.startswith("error: ")


@pytest.mark.parametrize("stdin", ["<&-", "</dev/null"])
def test_a_run_needs_no_stdin(tmp_path: Path, stdin: str) -> None:
    save(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", mindpet(PAIRS))
    result = in_shell(f'"$@" {stdin}', "base.ckpt", "lora.ckpt", "--alpha", "8", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_merge_is_undone_bit_for_bit(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("base.ckpt", "lora.ckpt", "--alpha", "8", "-o", "tuned.ckpt", "--unmerge-patch", "p")
    assert code == 0
    assert f"  patch      p, {Path('p').stat().st_size / 1000:.1f} KB, " in out
    code, out, err = command("--unmerge", "p", "tuned.ckpt", "lora.ckpt")
    assert (code, err) == (0, "")
    assert out.startswith("restored tuned.ckpt - lora.ckpt -> tuned-unmerged.ckpt\n")
    assert f"{len(BASE)} tensors, each bit for bit that of the base" in out
    assert Path("tuned-unmerged.ckpt").read_bytes() == Path("base.ckpt").read_bytes()


def test_undoing_takes_no_options_of_the_merge(command: Command) -> None:
    code, _, err = command("--unmerge", "p", "tuned.ckpt", "lora.ckpt", "--alpha", "8", "--names", "hf")
    assert code == 2
    assert "found --alpha, --names besides" in err
