"""What tests found out on the support of networks, methods and packages: docs/support.md is made of it.

`tests/mindspore/network/test_support.py` and the examples' tests compare what they ran with `docs/support/PAIR.json`;
with `UPDATE_SUPPORT=1` in the environment they write it instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

Results = Mapping[str, Mapping[str, object]]
"""Network to method to what was found."""


def check_results(pair: str, section: str, results: Results) -> None:
    """Compare results with the ones that the page was made of; or make them so, where the environment asks for it."""
    path = ROOT / "docs" / "support" / f"{pair}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if os.environ.get("UPDATE_SUPPORT"):
        known[section] = {**known.get(section, {}), **results}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    found = {network: dict(known.get(section, {}).get(network, {})) for network in results}
    assert found == {network: dict(cells) for network, cells in results.items()}, (
        f"docs/support/{pair}.json is out of date: run these tests with UPDATE_SUPPORT=1, then docs/generate_support.py"
    )
