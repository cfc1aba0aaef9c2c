"""How Sphinx makes a site of these pages: `make docs`, which fails on any warning."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from surgery.version import __version__

project = "pet-surgery"
author = project_copyright = "the pet-surgery authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
default_role = "code"  # docstrings write `names` as Markdown does
root_doc = "index"
# README.md is the index on a code host, index.rst that of the site.
exclude_patterns = ["README.md"]

# Links to headings are those of code hosts; tests/docs/test_anchors.py holds them too.
myst_heading_anchors = 4
myst_links_external_new_tab = False

# surgery.network stands on these, which are gigabytes and hold numpy below 2: their names are enough for a signature.
autodoc_mock_imports = ["mindspore", "mindpet", "mindformers"]
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

html_theme = "furo"
html_title = f"pet-surgery {release}"
html_copy_source = False

# The index on a code host is the site's own, and what lies beside docs/ has no page there: the READMEs.
_INDEX = re.compile(r"\]\(\.\./README\.md\)")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[A-Z][\w.-]*\.md\)")


def _keep_links_inside(app: Sphinx, docname: str, source: list[str]) -> None:
    text = _INDEX.sub("](../index.rst)", source[0]) if "/" in docname else source[0]
    source[0] = _OUTSIDE.sub(r"\1", text)


def setup(app: Sphinx) -> None:
    """Read pages without the links that lead out of the site."""
    app.connect("source-read", _keep_links_inside)
