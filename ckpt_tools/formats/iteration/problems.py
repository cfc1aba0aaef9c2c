"""The problems of an iteration, collected so that all of them are told at once."""

from __future__ import annotations

from surgery.errors import CorruptInputError, InputMissingError, MismatchError, PetSurgeryError, Problem

__all__ = ["IterationProblems"]

_MAX_PROBLEMS = 20


class IterationProblems:
    """What is wrong, raised at once: damage weighs more than a missing file, and that more than a disagreement."""

    def __init__(self) -> None:
        self._found: dict[type[PetSurgeryError], list[Problem]] = {
            CorruptInputError: [],
            InputMissingError: [],
            MismatchError: [],
        }

    def add(self, where: str, found: str, expected: str = "", remedy: str = "") -> None:
        """Something that does not fit together."""
        self._found[MismatchError].append(Problem(where, found, expected, remedy))

    def add_error(self, error: PetSurgeryError) -> None:
        """A file that cannot be read."""
        kind = next((kind for kind in self._found if isinstance(error, kind)), CorruptInputError)
        self._found[kind].extend(error.problems)

    def raise_if_any(self) -> None:
        problems = [problem for group in self._found.values() for problem in group]
        if len(problems) > _MAX_PROBLEMS:
            problems[_MAX_PROBLEMS:] = [Problem("further", f"{len(problems) - _MAX_PROBLEMS} problems")]
        for kind, group in self._found.items():
            if group:
                raise kind(problems)
