"""docs/api.rst has all of the public interface."""

from __future__ import annotations

import re
from pathlib import Path

import ckpt_tools

PAGE = (Path(__file__).parents[2] / "docs" / "api.rst").read_text(encoding="utf-8")


def test_every_operation_and_report_is_in_the_page() -> None:
    told = set(re.findall(r"^\.\. auto(?:function|class):: (\w+)$|``(\w+Report)``", PAGE, re.MULTILINE))
    assert {name for names in told for name in names if name} == set(ckpt_tools.__all__)


def test_every_public_module_is_in_the_page() -> None:
    modules = set(re.findall(r"^\.\. automodule:: ([\w.]+)$", PAGE, re.MULTILINE))
    assert {"surgery", "surgery.errors", "surgery.methods", "surgery.network", "ckpt_tools.reports"} <= modules
