"""The example of a release pipeline: what passes is published, what does not is kept aside, and the exit code tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docs_samples import write_docs_samples

from ckpt_tools import verify_output
from examples.release import main


@pytest.fixture(autouse=True)
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_docs_samples(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_a_merge_that_stands_the_checks_is_released_with_its_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["base.ckpt", "lora.ckpt", "--alpha", "16", "-o", "release.safetensors"]) == 0
    report = json.loads(Path("release.safetensors.report.json").read_text())
    assert Path("release.safetensors").stat().st_size == report["bytes_written"]
    assert report["base_fingerprint"] in capsys.readouterr().out
    assert not list(Path().glob("candidate-*"))


def test_a_ckpt_is_released_with_its_manifest() -> None:
    assert main(["base.ckpt", "lora.ckpt", "--alpha", "16", "-o", "release.ckpt"]) == 0
    assert verify_output("release.ckpt").has_digests
    assert not list(Path().glob("candidate-*"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--alpha", "1e-4"], "% unchanged, more than 90.0%"),
        (["--alpha", "16000"], "is not in 0.0001 to 0.5"),
        (["--alpha", "16", "--max-unchanged", "0.01"], "more than 1.0%"),
        (["--alpha", "16", "--min-delta", "0.1"], "is not in 0.1 to 0.5"),
    ],
)
def test_a_merge_that_fails_a_check_is_kept_aside(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["base.ckpt", "lora.ckpt", *options, "-o", "release.ckpt"]) == 6
    error = capsys.readouterr().err
    assert complaint in error
    assert error.endswith("not released: candidate-release.ckpt\n")
    assert not Path("release.ckpt").exists()
    assert Path("candidate-release.ckpt").exists()


def test_a_folder_is_released_whole() -> None:
    assert main(["llama-hf", "llama-lora-peft", "-o", "release"]) == 0
    assert Path("release/config.json").is_file()


def test_nothing_that_exists_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("release.ckpt").write_text("precious")
    assert main(["base.ckpt", "lora.ckpt", "--alpha", "16", "-o", "release.ckpt"]) == 8
    assert Path("release.ckpt").read_text() == "precious"
    assert "it exists already" in capsys.readouterr().err


def test_an_error_of_the_merge_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["base.ckpt", "lora.ckpt", "-o", "release.ckpt"]) == 5
    assert "expected the alpha of the training" in capsys.readouterr().err
