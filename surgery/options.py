"""Checks of a configuration file's values, shared by the readers of every kind of file."""

from __future__ import annotations

import re
from typing import Any

from surgery.errors import CorruptInputError, Problem

__all__ = ["Options", "is_unset"]


def is_unset(value: Any) -> bool:
    """Whether an option's value says nothing: null, false or empty; 0 is a number."""
    return value is None or value is False or value == "" or value == [] or value == {}


class Options:
    """The options of one file or section: typed access, and what is wrong with them, collected.

    Args:
        where: The file, and the section where it has several.
        values: Option to value, as the file has them.
    """

    def __init__(self, where: str, values: dict[str, Any]) -> None:
        self.where = where
        self.values: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }
        self.problems: list[Problem] = []

    def given(self, name: str) -> bool:
        """Whether the option is there and says something."""
        return self.values.get(name) is not None

    def flag(self, name: str) -> bool:
        """A boolean; False where it is absent or null."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.refuse(name, "true or false")
        return False

    def whole(self, name: str) -> int | None:
        """A whole number."""
        value = self.values.get(name)
        if value is None or _is_whole(value):
            return value
        self.refuse(name, "a whole number")
        return None

    def number(self, name: str) -> float | None:
        """A number; also one that is not finite, which is for the scale to refuse."""
        value = self.values.get(name)
        if value is None or _is_number(value):
            return None if value is None else float(value)
        self.refuse(name, "a number")
        return None

    def text(self, name: str) -> str:
        """A string; empty where it is absent or null."""
        value = self.values.get(name)
        if value is None or isinstance(value, str):
            return value or ""
        self.refuse(name, "a string")
        return ""

    def choice(self, name: str, *choices: str) -> str:
        """One of some strings; the first where it is absent or null."""
        value = self.values.get(name)
        if value is None or value in choices:
            return value or choices[0]
        self.refuse(name, " or ".join(choices))
        return choices[0]

    def names(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.values.get(name)
        if value is None or (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            return tuple(value or ())
        self.refuse(name, "a list of strings")
        return ()

    def names_or_expression(self, name: str) -> tuple[str, ...] | str | None:
        """A list of strings, or a string that is a regular expression; None where it is absent or null."""
        value = self.values.get(name)
        if isinstance(value, str):
            self.expression(name, value)
            return value
        return None if value is None else self.names(name)

    def indices(self, name: str) -> tuple[int, ...] | int | None:
        """A list of whole numbers, or one."""
        value = self.values.get(name)
        if value is None or _is_whole(value):
            return value
        if isinstance(value, list) and all(_is_whole(entry) for entry in value):
            return tuple(value)
        self.refuse(name, "a list of whole numbers")
        return None

    def numbers_by_expression(self, name: str, *, whole: bool, form: str = "{}") -> dict[str, Any]:
        """An object of regular expressions and numbers; `form` is what `expression` takes."""
        value = self.values.get(name)
        if value is None:
            return {}
        fits = _is_whole if whole else _is_number
        if not isinstance(value, dict) or not all(isinstance(k, str) and fits(v) for k, v in value.items()):
            self.refuse(name, f"an object of names and {'whole ' if whole else ''}numbers")
            return {}
        for pattern in value:
            self.expression(name, pattern, form)
        return dict(value)

    def expression(self, name: str, pattern: str, form: str = "{}") -> None:
        """Make sure that a string is a regular expression, also as the part of another that it is used as.

        Args:
            name: The option.
            pattern: The string.
            form: The whole expression, with `{}` for the string: `(?i)x` is one by itself and none behind something.
        """
        try:
            re.compile(pattern)
            re.compile(form.replace("{}", pattern))
        except (re.error, OverflowError, RecursionError) as error:
            self.problems.append(
                Problem(f"{self.where}: {name}", f"{pattern!r}, which is none ({error})", "a regular expression")
            )

    def check(self) -> None:
        """Report all that was wrong.

        Raises:
            CorruptInputError: A value was not of its option's type.
        """
        if self.problems:
            raise CorruptInputError(self.problems)

    def refuse(self, name: str, expected: str) -> None:
        """Report that an option's value is none that it may have."""
        shown = repr(self.values[name])
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        self.problems.append(Problem(f"{self.where}: {name}", shown, expected))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # A whole number beyond 10^300 has no float.
    return isinstance(value, float) or (_is_whole(value) and abs(value) < 10**300)
