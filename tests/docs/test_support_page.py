"""docs/support.md is what the tests' results make; those compare the results with what they find."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from surgery.methods import known_methods

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = spec_from_file_location("generate_support", ROOT / "docs" / "generate_support.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_results_make(generator: ModuleType) -> None:
    text = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    assert generator.page() == text, "run: python docs/generate_support.py"


def test_every_method_is_in_the_page(generator: ModuleType) -> None:
    assert set(generator.METHODS) == {method.pet_type for method in known_methods() if method.pet_type != "ia3"}


def test_no_result_is_left_out_of_the_page(generator: ModuleType) -> None:
    for pair in generator.PAIRS:
        results = json.loads((ROOT / "docs" / "support" / f"{pair}.json").read_text(encoding="utf-8"))
        assert set(results["networks"]) <= set(generator.NETWORKS)
        assert all(set(cells) == set(generator.METHODS) for cells in results["networks"].values())
