"""Every example of the READMEs and of docs/ is run as it stands; CONTRIBUTING.md tells how to write one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_running import OF_NETWORKS, ROOT, SYBIL, run_page, write_commands

DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_commands(tmp_path_factory.mktemp("bin"))


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if path not in OF_NETWORKS],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_example_runs(path: Path, tmp_path: Path, commands: Path) -> None:
    run_page(path, tmp_path, commands)


def test_readme_has_examples_that_run() -> None:
    assert len(list(SYBIL.parse(ROOT / "README.md"))) >= 3


@pytest.mark.parametrize(
    ("session", "failure"),
    [
        ("$ echo 1\n1\n$ echo 2\n2", None),
        ("$ printf 'a\\nb\\n'\na\n...", None),
        ("$ false", "exit code 1"),
        ("$ (echo no; exit 5)\nno\n$ echo $?\n5", None),
        ("$ echo 1\n2", "expected:\n2"),
        ("$ echo \\\n    1\n1", None),
    ],
)
def test_a_session_is_held_to_what_it_prints(session: str, failure: str | None, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```console\n{session}\n```\n", encoding="utf-8")
    (example,) = SYBIL.parse(page)
    if failure is None:
        example.evaluate()
    else:
        with pytest.raises(Exception, match=failure):
            example.evaluate()


@pytest.mark.parametrize(
    "path",
    [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_link_to_a_file_finds_it(path: Path) -> None:
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
