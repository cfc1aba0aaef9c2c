"""An inspection says in short what the manifest of an output says, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_cases import BASE, write

from ckpt_tools import inspect_checkpoint, transform
from surgery.version import __version__


@pytest.mark.parametrize("output", ["out.ckpt", "out.safetensors", "folder"])
def test_the_manifest_is_told_in_a_line(tmp_path: Path, output: str) -> None:
    write(tmp_path / "base.ckpt", BASE)
    transform(tmp_path / "base.ckpt", output=tmp_path / output)
    metadata = inspect_checkpoint(tmp_path / output).metadata or {}
    expected = f"transform of source base.ckpt by pet-surgery {__version__}; digests of {len(BASE)} tensors"
    assert metadata["manifest"] == expected
    assert "pet_surgery.manifest" not in metadata


def test_a_broken_manifest_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "base.ckpt", BASE)
    (tmp_path / "base.pet-manifest.json").write_text("{")
    report = inspect_checkpoint(tmp_path / "base.ckpt")
    assert "broken JSON" in report.warnings[0]
    assert "manifest" not in (report.metadata or {})
