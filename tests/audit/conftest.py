"""Tests of `make audit`, which need pip-audit and uv: `make test-audit`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / ".ci"))
