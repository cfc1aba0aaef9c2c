"""docs/cli.md tells what the commands are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from surgery import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_help_in_the_page_is_what_the_commands_print(generator: ModuleType) -> None:
    assert generator.with_help(PAGE) == PAGE, "run: python docs/generate_cli.py"


def test_every_command_is_in_the_page(generator: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [command.name for command in generator.COMMANDS] == list(project["scripts"])


def _exit_codes(kind: type[errors.PetSurgeryError]) -> Iterator[int]:
    for kind_of_it in kind.__subclasses__():
        yield kind_of_it.exit_code
        yield from _exit_codes(kind_of_it)


def test_every_exit_code_is_in_the_page() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == {0, 1, 130, *_exit_codes(errors.PetSurgeryError)}
