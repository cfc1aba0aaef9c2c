"""What is translated does not fall behind: the same headings, examples, tables and links in the same order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRANSLATION = {"README.zh-CN.md", "docs/zh-CN/quickstart.md"}


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the examples; comments are translated, so they do not count."""
    blocks = re.findall(r"^(?:```(\w+)|<!--- invisible-code-block: (\w+))\n(.*?)^(?:```|-->)$", text, re.M | re.S)
    return [(shown or hidden, re.sub(r" +# .*", "", content)) for shown, hidden, content in blocks]


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _headings(text: str) -> list[int]:
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", outside, re.M)]


def _links(text: str) -> set[str]:
    return {link for link in re.findall(r"\]\(([^)\s]+)\)", text) if link not in (*TRANSLATION, "README.md")}


def test_the_readmes_have_the_same_headings() -> None:
    assert _headings(_text("README.zh-CN.md")) == _headings(_text("README.md"))


def test_the_readmes_have_the_same_examples() -> None:
    assert len(_blocks(_text("README.md"))) >= 10
    assert _blocks(_text("README.zh-CN.md")) == _blocks(_text("README.md"))


def test_the_readmes_have_tables_of_the_same_length() -> None:
    rows = [sum(line.startswith("|") for line in _text(page).splitlines()) for page in ("README.zh-CN.md", "README.md")]
    assert rows[0] == rows[1]


def test_the_readmes_link_to_the_same_pages() -> None:
    assert _links(_text("README.zh-CN.md")) == _links(_text("README.md"))


@pytest.mark.parametrize(("page", "other"), [("README.md", "README.zh-CN.md"), ("README.zh-CN.md", "README.md")])
def test_each_readme_leads_to_the_other(page: str, other: str) -> None:
    assert f"]({other})" in _text(page)


def test_the_quick_start_is_linked_from_both_sides() -> None:
    assert "](docs/zh-CN/quickstart.md)" in _text("README.zh-CN.md")
    assert "](zh-CN/quickstart.md)" in _text("docs/README.md")


def test_a_missing_example_is_noticed() -> None:
    text = "# A\n```sh\nls  # list\n```\n<!--- invisible-code-block: python\nx = 1\n-->\n"
    assert _blocks(text) == [("sh", "ls\n"), ("python", "x = 1\n")]
