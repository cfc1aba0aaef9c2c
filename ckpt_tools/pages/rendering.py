"""A page as bytes: one file that asks nobody for anything.

Names out of files are escaped by the template engine, wherever they come; what is not printable is shown as its escape.
The page's own policy forbids everything but its one style sheet and its one script, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from importlib.resources import files

from ckpt_tools.pages.blocks import Block, Choice, Content, Drawing, Figure
from ckpt_tools.pages.extra import require_html_extra
from ckpt_tools.printable import printable
from ckpt_tools.reports.base import Report
from surgery.version import __version__

__all__ = ["render"]

MOST_ROWS = 5_000
"""Rows of a table and names of a list; what is beyond is in the page's JSON alone."""

_JSON_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})


def render(report: Report, content: Content) -> bytes:
    """The page of a report.

    Args:
        report: The report, which the page holds as JSON too.
        content: What the page says of it.

    Raises:
        MissingExtraError: Jinja is not installed.
    """
    require_html_extra()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("ckpt_tools.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _resource("page.css") + _rules(content), _resource("page.js")
    text = environment.get_template("page.html").render(
        content=content,
        sections=[section for section in content.sections if section.blocks],
        report=report,
        style=Markup(style),
        script=Markup(script),
        policy=(
            f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
            "base-uri 'none'; form-action 'none'"
        ),
        json=Markup(report.to_json().translate(_JSON_ESCAPES)),
        as_markup=Markup,
        most_rows=MOST_ROWS,
        version=__version__,
    )
    # A file's name may be any bytes, which Python has as lone surrogates.
    return text.encode("utf-8", "backslashreplace")


def _resource(name: str) -> str:
    return (files("ckpt_tools.pages") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _rules(content: Content) -> str:
    """The style rules of all drawings."""
    rules: dict[str, str] = {}
    for section in content.sections:
        for drawing in _drawings(section.blocks):
            rules.update(drawing.rules)
    return "".join(f".{name}{{{declarations}}}\n" for name, declarations in sorted(rules.items()))


def _drawings(blocks: Iterable[Block]) -> Iterator[Drawing]:
    for block in blocks:
        if isinstance(block, Figure):
            yield block.drawing
        elif isinstance(block, Choice):
            for _, inner in block.options:
                yield from _drawings(inner)
