"""How Sphinx makes a site of these pages: `make docs`, which fails on any warning."""

from __future__ import annotations

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
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

html_theme = "furo"
html_title = f"pet-surgery {release}"
html_copy_source = False
