"""`--html`: the report of a command as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ckpt_tools.cli.common import PATH

if TYPE_CHECKING:
    from ckpt_tools.reports import Report

__all__ = ["page_option", "page_writer"]

Command = TypeVar("Command", bound=Callable[..., Any])

_PATHS = (
    "adapter",
    "adapter_strategy",
    "base",
    "base_strategy",
    "config",
    "dst_strategy",
    "merged_strategy",
    "other",
    "other_strategy",
    "output",
    "remainder",
    "public_key",
    "sign_key",
    "signature",
    "src_strategy",
    "unmerge_patch",
)


def page_option(command: Command) -> Command:
    """The option of commands whose report can be a page."""
    text = "Write the report as one self-contained page too; needs pet-surgery[html]."
    return click.option("--html", type=PATH, metavar="FILE.html", help=text)(command)


def page_writer(html: str | None, options: Mapping[str, Any], *inputs: str) -> Callable[[Report], None]:
    """Check where a page is to go, before the work.

    Args:
        html: The path that the user gave; None where no page is wanted.
        options: The command's options, which say what the page may not replace.
        *inputs: The command's arguments.

    Returns:
        What writes the page of a report; it does nothing where none is wanted.
    """
    if html is None:
        return lambda report: None
    from ckpt_tools.pages import check_page, write_page

    given = [options.get(name) for name in _PATHS]
    paths = [path for value in given if value for path in ([value] if isinstance(value, str) else value)]
    force = bool(options.get("force"))
    check_page(html, [*inputs, *paths], force=force)
    return lambda report: write_page(report, html, force=force)
