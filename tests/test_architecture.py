"""The arrows between modules, as docs and CONTRIBUTING.md promise them; the imports are parsed, not executed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckpt_tools
import surgery

FRAMEWORKS = ("mindspore", "mindformers", "mindpet", "torch", "peft", "transformers", "ray")
NETWORK = "surgery.network"  # the one part that drives MindSpore networks
CHECKS = (
    "ckpt_tools.injecting.network_check",
)  # `--check-network` builds the network of a run, for those who have MindSpore
HOLDERS = ("surgery.network.packages", "surgery.network.building")  # building imports what only it needs
BOTTOM = ("ckpt_tools.tensors",)


def _modules() -> dict[str, Path]:
    found = {}
    for package in (surgery, ckpt_tools):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            parts = (package.__name__, *path.relative_to(root).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _within(module: str, *prefixes: str) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


# What drives networks cannot be imported without them; tests/mindspore/network holds its exports.
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py" and not _within(name, NETWORK)]


def _imports(module: str) -> Iterator[str]:
    """Every module that is imported anywhere in the source, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: relative imports hide the arrows"
            yield node.module or ""
            # `from ckpt_tools import lazy` imports a module, `from ckpt_tools.tensors.lazy import Stored` does not.
            yield from (name for alias in node.names if (name := f"{node.module}.{alias.name}") in MODULES)


def _offenders(importers: list[str], *forbidden: str) -> list[str]:
    assert importers, "the rule applies to no module: it guards nothing"
    return [
        f"{importer} imports {imported}"
        for importer in importers
        for imported in _imports(importer)
        if _within(imported, *forbidden)
    ]


def test_surgery_core_knows_neither_files_nor_frameworks() -> None:
    core = [module for module in MODULES if _within(module, "surgery") and not _within(module, NETWORK)]
    assert _offenders(core, "ckpt_tools", *FRAMEWORKS) == []
    core.remove("surgery")  # hands out what networks need, and imports it when it is asked for
    assert _offenders(core, NETWORK) == []


def test_ckpt_tools_imports_no_framework_and_nothing_that_does() -> None:
    files = [module for module in MODULES if _within(module, "ckpt_tools")]
    assert _offenders(files, *FRAMEWORKS) == []
    assert _offenders([module for module in files if module not in CHECKS], NETWORK) == []


def test_only_one_module_of_networks_knows_where_packages_keep_what_is_used_of_them() -> None:
    others = [module for module in MODULES if _within(module, NETWORK) and module not in HOLDERS]
    assert _offenders(others, *FRAMEWORKS) == []


def test_lazy_tensors_know_nothing_above_them() -> None:
    above = [module for module in MODULES if _within(module, "ckpt_tools") and not _within(module, *BOTTOM)]
    above.remove("ckpt_tools")  # the prefix of all
    assert _offenders([module for module in MODULES if _within(module, *BOTTOM)], *above) == []


def test_formats_know_only_lazy_tensors_and_progress() -> None:
    formats = [module for module in MODULES if _within(module, "ckpt_tools.formats")]
    allowed = (
        *BOTTOM,
        "ckpt_tools.formats",
        "ckpt_tools.progress",
        "ckpt_tools.sizes",
    )
    others = [module for module in MODULES if _within(module, "ckpt_tools") and not _within(module, *allowed)]
    others.remove("ckpt_tools")
    assert _offenders(formats, *others) == []


def test_only_the_command_line_imports_the_command_line() -> None:
    library = [module for module in MODULES if not _within(module, "ckpt_tools.cli", NETWORK)]
    assert _offenders(library, "ckpt_tools.cli", "click") == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_what_it_imports_in_sorted_order(package: str) -> None:
    module = importlib.import_module(package)
    exported = getattr(module, "__all__", [])
    assert [name for name in exported if not hasattr(module, name)] == []
    # As ruff sorts: CONSTANTS, then Classes, then functions.
    assert list(exported) == sorted(exported, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    tree = ast.parse(MODULES[package].read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and _within(node.module or "", "surgery", "ckpt_tools")
        for alias in node.names
    }
    assert imported <= set(exported)


def test_importing_the_packages_loads_no_framework() -> None:
    loaded = _loaded("import ckpt_tools, surgery")
    assert "ckpt_tools" in loaded
    assert loaded.isdisjoint(FRAMEWORKS)


def test_help_loads_neither_frameworks_nor_numpy() -> None:
    """A user who asks for help waits for click alone."""
    loaded = _loaded("import sys; sys.argv = ['pet-merge', '--help']; from ckpt_tools.cli.merge import main; main()")
    assert "click" in loaded
    assert loaded.isdisjoint({*FRAMEWORKS, "numpy", "ml_dtypes"})


def _loaded(program: str) -> set[str]:
    """The top-level modules that a fresh interpreter imports for a program."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
