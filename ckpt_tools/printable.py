"""Names out of files, as they may be shown."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """A line in which names out of files can neither steer the terminal nor begin another line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
