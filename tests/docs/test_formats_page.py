"""The tables of docs/formats.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ckpt_tools.tensors.dtypes import BY_NAME
from surgery import Role, classify, to_huggingface, to_mindformers

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")

A_ROLES = {Role.LORA_A, Role.EMBEDDING_A, Role.EXPERT_A}
B_ROLES = {Role.LORA_B, Role.EMBEDDING_B, Role.EXPERT_B}


def _rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_element_types_are_those_of_the_code() -> None:
    found = {here.strip("`"): (ckpt, stored.split(",")[0]) for here, ckpt, stored in _rows("Element types")}
    expected = {name: (dtype.mindspore or "-", dtype.safetensors or "-") for name, dtype in BY_NAME.items()}
    expected["int4"] = ("Int4", "I8")
    assert found == expected


@pytest.mark.parametrize("row", _rows("Names of adapter parameters"), ids=lambda row: row[0])
def test_names_of_adapter_parameters_are_told_as_the_table_says(row: list[str]) -> None:
    title, *halves, _ = row
    layer = "model.tok_embeddings" if "embeddings" in title else "model.layers.0.attention.wq"
    for half, roles in zip(halves, (A_ROLES, B_ROLES), strict=True):
        name = re.findall(r"`(.+?)`", half)[0].replace("X", layer).replace("W", f"{layer}.weight")
        parameter = classify(name)
        assert f"`{parameter.family}`" == title.split(",")[0]
        assert parameter.role in roles
        assert parameter.layer.startswith(layer)


@pytest.mark.parametrize(("mindformers", "huggingface"), _rows("Names of networks"))
def test_names_of_networks_are_translated_as_the_table_says(mindformers: str, huggingface: str) -> None:
    one, other = (text.strip("`").replace("N", "7") for text in (mindformers, huggingface))
    if not one.endswith("weight"):
        one, other = f"{one}.weight", f"{other}.weight"
    assert (to_huggingface(one), to_mindformers(other)) == (other, one)
