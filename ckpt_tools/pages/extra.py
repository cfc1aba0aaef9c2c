"""The packages that pages need, which no other part of the tools does."""

from __future__ import annotations

from importlib import import_module

from surgery.errors import MissingExtraError, Problem

__all__ = ["require_html_extra"]


def require_html_extra() -> None:
    """Make sure that pages can be made.

    Raises:
        MissingExtraError: Jinja or matplotlib is not installed; the error says how to.
    """
    try:
        for name in ("jinja2", "matplotlib"):
            import_module(name)
    except ImportError as error:
        found = f"{error.name or 'a package'} is not installed"
        raise MissingExtraError(Problem("--html", found, remedy="pip install 'pet-surgery[html]'")) from error
