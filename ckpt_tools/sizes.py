"""Sizes as people write them, and bytes as people read them."""

from __future__ import annotations

import re
from fractions import Fraction

from surgery.errors import Problem, UsageError

__all__ = ["format_size", "given_bytes", "parse_size"]

_DECIMAL_UNITS = ("B", "KB", "MB", "GB", "TB")
_BYTES = {unit: 1000**power for power, unit in enumerate(_DECIMAL_UNITS)}
_BYTES |= {unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), start=1)}
_BY_UNIT = {unit.lower(): count for unit, count in _BYTES.items()}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes that a size such as `5GB`, `1.5 GiB` or `4096` stands for.

    Units are decimal (KB, MB, GB, TB: powers of 1000, as in Hugging Face's shard sizes) or binary (KiB, MiB, GiB,
    TiB: powers of 1024), in any case; without one, bytes.

    Raises:
        UsageError: It is no size, or none above zero.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = _BY_UNIT.get(match[2] or "b") if match else None
    count = int(Fraction(match[1]) * unit) if match and unit else 0
    if count <= 0:
        raise UsageError(Problem(f"size {text!r}", "no size", "a number with one of " + ", ".join(_BYTES)))
    return count


def given_bytes(size: int | str | None) -> int | None:
    """The bytes that a caller gives as a number or as a size; None for none.

    Raises:
        UsageError: As of `parse_size`.
    """
    return None if size is None else parse_size(str(size))


def format_size(count: int) -> str:
    """Bytes in the largest decimal unit that keeps them above one, with three digits: `1.48 GB`."""
    value, unit = float(count), _DECIMAL_UNITS[0]
    for unit in _DECIMAL_UNITS:
        # 999.5 would be shown as 1000.
        if abs(value) < 999.5 or unit == _DECIMAL_UNITS[-1]:
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"
