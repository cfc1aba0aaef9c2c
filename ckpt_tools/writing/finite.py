"""Whether what was written can be held by its type."""

from __future__ import annotations

from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.writing.write import Outcome
from surgery.errors import NonFiniteError, Problem

__all__ = ["refuse_overflow", "wider_type"]

_REMEDY = "Choose another --dtype, or accept it with --allow-nonfinite"


def refuse_overflow(outcome: Outcome, dtype: str, remedy: str = _REMEDY) -> None:
    """Call an output off in which casting made finite numbers infinite.

    Args:
        outcome: What was measured.
        dtype: The type that the user asked for.
        remedy: What the user can do.

    Raises:
        NonFiniteError: It has such numbers.
    """
    problems = [
        Problem(name, f"{over} elements beyond the range of {dtype}", "values that it can hold", remedy)
        for name, measured in outcome.statistics.items()
        if (over := measured.nonfinite_output - measured.nonfinite_input) > 0
    ]
    if problems:
        raise NonFiniteError(problems)


def wider_type(dtype: DType) -> str:
    """The remedy for values that a type cannot hold, where nobody can accept them; empty where it is wide enough."""
    return "Choose --dtype fp32" if dtype.name in ("fp16", "bf16") else ""
