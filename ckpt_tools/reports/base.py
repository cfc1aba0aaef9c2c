"""What all reports have: frozen dataclasses that become one JSON object."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from surgery.version import __version__

__all__ = ["SCHEMA", "DroppedTensor", "OutputReport", "Report"]

SCHEMA = 1
"""The version of the reports' schema: it rises when a field goes or changes its meaning, not when one is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a command did.

    Attributes:
        command: Whose report it is: `merge`, `split`, ...
        version: This tool's version.
        schema: The version of the schema, `SCHEMA`.
        seconds: Wall-clock time.
        warnings: What the user ought to know, a sentence each.
    """

    command: str
    version: str = __version__
    schema: int = SCHEMA
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The report as one JSON object; numbers that are not finite become null."""
        return json.dumps(_finite(asdict(self)), allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReport(Report):
    """What a command that writes a checkpoint did, or in a dry run would do.

    Attributes:
        output: Where the output lies.
        dry_run: Whether nothing was written.
        format: `ckpt` or `safetensors`.
        files: Names of the output's files; a single one is the output itself.
        bytes_read: Bytes of the inputs that are read for the output.
        bytes_written: Bytes of the output.
        peak_memory_bytes: The anonymous memory that is expected at most.
        free_disk_bytes: Room at the output's place before writing.
        resumed: Files that a killed run of the same plan, or runs of some of its ranks, had completed.
    """

    output: str
    dry_run: bool = False
    format: str
    files: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    free_disk_bytes: int
    resumed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DroppedTensor:
    """A tensor of an input that is not in the output, and why."""

    name: str
    source: str
    reason: str


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
