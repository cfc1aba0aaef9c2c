"""What docs/merge.md says of PEFT's options is what reading a configuration does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import MismatchError
from surgery.peft_config import parse_peft_config

PAGE = (Path(__file__).parents[2] / "docs" / "merge.md").read_text(encoding="utf-8")


def _options(meaning: str) -> list[str]:
    """The options of the rows whose meaning begins so."""
    rows = re.findall(rf"^\| (.+?) \| {meaning}", PAGE, re.MULTILINE)
    return [option for row in rows for option in re.findall(r"`(\w+)`", row) if option != "peft_type"]


def _parse(**options: Any) -> None:
    parse_peft_config({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **options}, "adapter_config.json")


def _initialisations() -> tuple[list[str], list[str]]:
    (row,) = re.findall(r"^\| `init_lora_weights` \| (.+?): nothing\. (.+?): refused", PAGE, re.MULTILINE)
    harmless, refused = (re.findall(r"`(\w+)`", part) for part in row)
    return harmless, refused


@pytest.mark.parametrize("option", _options("refused: "))
def test_a_refused_option_is_refused(option: str) -> None:
    with pytest.raises(MismatchError, match=option):
        _parse(**{option: {"set": True}})


@pytest.mark.parametrize("option", _options("nothing"))
def test_a_harmless_option_is_taken(option: str) -> None:
    _parse(**{option: {"set": True}})


@pytest.mark.parametrize("value", _initialisations()[0])
def test_an_initialisation_that_leaves_the_base_alone_is_taken(value: str) -> None:
    _parse(init_lora_weights=value)
    _parse(init_lora_weights={"true": True, "false": False}.get(value, value))


@pytest.mark.parametrize("value", _initialisations()[1])
def test_an_initialisation_that_changes_the_base_is_refused(value: str) -> None:
    with pytest.raises(MismatchError, match="init_lora_weights"):
        _parse(init_lora_weights=value)


def test_the_rows_are_found() -> None:
    assert len(_options("refused: ")) >= 10
    assert len(_options("nothing")) >= 5
    assert all(_initialisations())
