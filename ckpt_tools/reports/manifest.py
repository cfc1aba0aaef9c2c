"""What a check against a manifest found."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.reports.base import Report

__all__ = ["ManifestReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestReport(Report):
    """What `verify_output` compared; all of it was as the manifest says.

    Attributes:
        output: The output's path.
        manifest: The file that holds the manifest.
        tool: The program that wrote the output, and its version.
        made_by: The command that wrote it: `merge`, `transform`, ...
        tensors: How many tensors it holds.
        companions: How many small files were compared.
        bytes_read: Bytes of tensors whose digests were compared.
        has_digests: Whether the manifest has digests; if not, contents were not compared.
        signature: The file of the signature that was checked, or made; None where there was none to do.
    """

    output: str
    manifest: str
    tool: str
    made_by: str
    tensors: int
    companions: int
    bytes_read: int
    has_digests: bool
    signature: str | None = None
    command: str = "verify-output"
