"""Every error this project raises on purpose, and the exit code each one means.

::

    PetSurgeryError
      UsageError              2   arguments that contradict each other
      InputMissingError       3   a path that is not there
      CorruptInputError       4   bytes that break their format
        UnknownFormatError    4   a file of no format that is supported
        EncryptedInputError   4   a file that needs a key
      MismatchError           5   sound inputs that do not fit together
        NonFiniteError        5   NaN, Inf or an overflow in an input or a result
      VerificationError       6   a result that is not what it claims
      ResourceError           7   disk, memory or an I/O call failed
        InputChangedError     7   an input was modified while it was read
      OutputExistsError       8   the output is there already
        OutputLockedError     8   another run is writing it
      MissingExtraError       2   an optional package is not installed

Anything else that escapes is a bug: exit code 1, with its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CorruptInputError",
    "EncryptedInputError",
    "InputChangedError",
    "InputMissingError",
    "MismatchError",
    "MissingExtraError",
    "NonFiniteError",
    "OutputExistsError",
    "OutputLockedError",
    "PetSurgeryError",
    "Problem",
    "ResourceError",
    "UnknownFormatError",
    "UsageError",
    "VerificationError",
]


_MAX_TEXT = 1000
_MAX_PLACE = 6000  # a path has 4096 bytes at most
_MAX_LINES = 1000


def _short(text: str, limit: int = _MAX_TEXT) -> str:
    return text if len(text) <= limit else f"{text[: limit - 100]}...{text[-97:]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, what was expected, what was found, what to do about it.

    Attributes:
        where: The file, key or option at fault.
        found: What is there.
        expected: What should be there; empty where `found` says it already.
        remedy: What the user can do; empty where nothing is sensible.
    """

    where: str
    found: str
    expected: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        # What an input says may be of any length.
        where, expected, found = _short(self.where, _MAX_PLACE), _short(self.expected), _short(self.found)
        remedy = _short(self.remedy)
        text = f"{where}: "
        text += f"expected {expected}, found {found}." if expected else f"{found}."
        return f"{text} {remedy}{'' if remedy.endswith('?') else '.'}" if remedy else text


class PetSurgeryError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        problems: One or more; all that were found are reported at once.
    """

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """What to tell a user: each problem, or of very many the first ones and how many more there are."""
        lines = [str(problem) for problem in self.problems[:_MAX_LINES]]
        if len(self.problems) > _MAX_LINES:
            lines.append(f"And {len(self.problems) - _MAX_LINES} more.")
        return tuple(lines)

    def __reduce__(self) -> tuple[type[PetSurgeryError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class UsageError(PetSurgeryError):
    """Arguments that contradict each other or make no sense."""

    exit_code = 2


class MissingExtraError(PetSurgeryError):
    """An optional package is needed and not installed."""

    exit_code = 2


class InputMissingError(PetSurgeryError):
    """An input path does not exist or cannot be read."""

    exit_code = 3


class CorruptInputError(PetSurgeryError):
    """An input breaks the rules of its format."""

    exit_code = 4


class UnknownFormatError(CorruptInputError):
    """An input is of no format that this project reads."""


class EncryptedInputError(CorruptInputError):
    """An input is encrypted."""


class MismatchError(PetSurgeryError):
    """Inputs are sound, each by itself, but do not fit together."""

    exit_code = 5


class NonFiniteError(MismatchError):
    """NaN or Inf in an input or a result, or a value beyond the range of the output type."""


class VerificationError(PetSurgeryError):
    """A result is not what it claims to be."""

    exit_code = 6


class ResourceError(PetSurgeryError):
    """The machine refused: no room, no memory, an I/O error."""

    exit_code = 7


class InputChangedError(ResourceError):
    """An input was modified while it was being read."""


class OutputExistsError(PetSurgeryError):
    """The output exists and may not be replaced."""

    exit_code = 8


class OutputLockedError(OutputExistsError):
    """Another run is writing the same output."""
