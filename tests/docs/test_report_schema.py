"""docs/report.schema.json is what the dataclasses say, and accepts what the commands print and nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import pytest

from ckpt_tools import inject, inspect_checkpoint, merge, save_checkpoint, split, transform
from ckpt_tools.reports import Report

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_schema", DOCS / "generate_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check(report: dict[str, Any]) -> None:
    jsonschema.validate(report, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Report]:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = {f"model.layers.0.attention.{cell}.weight": rng.normal(size=(8, 8)).astype("f4") for cell in ("wq", "wv")}
    save_checkpoint("base.safetensors", weights)
    Path("run.yaml").write_text("pet_config: {pet_type: lora, lora_rank: 2, lora_alpha: 4, target_modules: '.*wq'}\n")
    injected = inject("base.safetensors", config="run.yaml", output="tuned.safetensors")
    cut = split("tuned.safetensors", config="run.yaml", output="adapter.safetensors")
    merged = merge("base.safetensors", "adapter.safetensors", alpha=4, output="merged.safetensors")
    dry = merge("base.safetensors", "adapter.safetensors", alpha=4, output="other.safetensors", dry_run=True)
    return {
        "inject": injected,
        "split": cut,
        "merge": merged,
        "merge, dry": dry,
        "inspect": inspect_checkpoint("adapter.safetensors", "merged.safetensors", spectra=True),
        "transform": transform("base.safetensors", output="whole.ckpt"),
    }


def test_the_file_is_what_the_dataclasses_say() -> None:
    generator = _generator()
    text = (DOCS / "report.schema.json").read_text(encoding="utf-8")
    assert text == generator.to_text(generator.make_schema()), "run python docs/generate_schema.py"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_reports_of_all_commands_fit(reports: dict[str, Report]) -> None:
    for report in reports.values():
        _check(json.loads(report.to_json()))


def test_a_report_without_a_field_or_with_another_type_does_not_fit(reports: dict[str, Report]) -> None:
    report = json.loads(reports["merge"].to_json())
    for wrong in (
        {key: value for key, value in report.items() if key != "weights"},
        report | {"bytes_read": "many"},
        report | {"command": "mergers"},
        report | {"weights": [{}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            _check(wrong)
