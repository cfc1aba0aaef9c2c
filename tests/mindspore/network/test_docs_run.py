"""The examples of pages on networks are run as they stand, and what the pages repeat is compared with the code."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from docs_running import OF_NETWORKS, ROOT, run_page, write_commands

from surgery.methods import LayerPetConfig, PetConfig, known_methods
from surgery.methods.registry import _METHODS

PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", OF_NETWORKS, ids=lambda path: path.name)
def test_every_example_runs(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(_METHODS, "ia3", raising=False)  # the page adds it, as an example before it may have
    run_page(path, tmp_path, write_commands(tmp_path_factory.mktemp("bin")))
    _METHODS.pop("ia3")


def test_the_table_of_options_is_what_the_configurations_have() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) ?\|$", PAGE, re.MULTILINE)
    shared = {entry.name for entry in (*fields(PetConfig), *fields(LayerPetConfig))}
    told = {pet_type: (kind, dict(re.findall(r"`(\w+)` (\S+?)(?:,|$)", options))) for pet_type, kind, options in rows}
    known = {}
    for method in known_methods():
        own = {entry.name: str(entry.default) for entry in fields(method.config) if entry.name not in shared}
        known[method.pet_type] = (method.config.__name__, own)
    known.pop("ia3", None)
    assert told == known


@pytest.mark.parametrize("example", ["ia3_method.py", "ia3_adapter.py"])
def test_the_method_that_the_page_adds_is_the_one_of_the_examples(example: str) -> None:
    """Line by line, but for types and docstrings, which the page leaves out."""
    blocks = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    shown = {name: dump for name, dump in definitions(blocks).items() if "ia3" in name.lower()}
    written = definitions((ROOT / "examples" / example).read_text(encoding="utf-8"))
    common = shown.keys() & written.keys()
    assert common >= ({"IA3"} if example == "ia3_method.py" else {"Ia3Dense", "Ia3Adapter"})
    assert {name: shown[name] for name in common} == {name: written[name] for name in common}


class _Bare(ast.NodeTransformer):
    """Takes types, docstrings and assertions out."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # ast's own name
        self.generic_visit(node)
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
        node.body = [part for part in node.body if not _is_docstring(part) and not isinstance(part, ast.Assert)]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:  # ast's own name
        self.generic_visit(node)
        node.body = [part for part in node.body if not _is_docstring(part)]
        return node


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def definitions(source: str) -> dict[str, str]:
    """Name to the bare definition of classes, functions and constants."""
    found = {}
    for node in ast.parse(source).body:
        bare = ast.dump(_Bare().visit(node))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found[node.name] = bare
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = bare
    return found
